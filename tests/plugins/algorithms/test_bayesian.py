"""Bayesian: the contract, and the posterior held to closed forms."""

from __future__ import annotations

from metarec.plugins.algorithms.bayesian import Bayesian
from metarec.testing import AlgorithmConformance


class TestConformance(AlgorithmConformance):
    """The contract of every algorithm."""

    algorithm = Bayesian

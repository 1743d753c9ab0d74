"""PLATIPUS through the contract; its steps and its bound are held by its own oracles."""

from __future__ import annotations

from metarec.learning import Training
from metarec.plugins.algorithms.platipus import Platipus
from metarec.testing import AlgorithmConformance

SMALL = {"size": 4, "rank": 3, "training": Training(epochs=2)}


class TestConformance(AlgorithmConformance):
    algorithm = Platipus
    options = SMALL

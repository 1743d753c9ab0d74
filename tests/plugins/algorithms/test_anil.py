"""The contract, for `anil`; its formulas are held in tests/learning/test_gradient.py."""

from metarec.learning import Training
from metarec.plugins.algorithms.anil import ANIL
from metarec.testing import AlgorithmConformance

SMALL = {"size": 4, "hidden": (5,), "training": Training(epochs=2)}


class TestConformance(AlgorithmConformance):
    algorithm = ANIL
    options = SMALL

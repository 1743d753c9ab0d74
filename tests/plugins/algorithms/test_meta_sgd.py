"""The contract, for `meta-sgd`; its formulas are held in tests/learning/test_gradient.py."""

from metarec.learning import Training
from metarec.plugins.algorithms.meta_sgd import MetaSGD
from metarec.testing import AlgorithmConformance

SMALL = {"size": 4, "hidden": (5,), "training": Training(epochs=2)}


class TestConformance(AlgorithmConformance):
    algorithm = MetaSGD
    options = SMALL

"""The contract, for `maml`; its formulas are held in tests/learning/test_gradient.py."""

from metarec.learning import Training
from metarec.plugins.algorithms.maml import MAML
from metarec.testing import AlgorithmConformance

SMALL = {"size": 4, "hidden": (5,), "training": Training(epochs=2)}


class TestConformance(AlgorithmConformance):
    algorithm = MAML
    options = SMALL


class TestConformanceWithUncertainty(AlgorithmConformance):
    algorithm = MAML
    options = SMALL | {"uncertainty": True}

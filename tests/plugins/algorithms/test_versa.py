"""The contract and the known answers, for `versa`."""

from metarec.learning import Training
from metarec.plugins.algorithms.versa import Versa
from metarec.testing import AlgorithmConformance

SMALL = {"size": 4, "rank": 4, "hidden": 8, "training": Training(epochs=2)}


class TestConformance(AlgorithmConformance):
    algorithm = Versa
    options = SMALL

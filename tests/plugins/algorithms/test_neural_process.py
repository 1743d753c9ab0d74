"""The contract and the known answers, for `neural-process`."""

from metarec.learning import Training
from metarec.plugins.algorithms.neural_process import NeuralProcess
from metarec.testing import AlgorithmConformance

SMALL = {"size": 4, "latent": 3, "hidden": 8, "training": Training(epochs=2)}


class TestConformance(AlgorithmConformance):
    algorithm = NeuralProcess
    options = SMALL

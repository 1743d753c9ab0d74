"""The contract and the known answers, for `transformer`."""

from metarec.learning import Training
from metarec.plugins.algorithms.transformer import Transformer
from metarec.testing import AlgorithmConformance

SMALL = {"size": 4, "layers": 2, "heads": 2, "head_width": 3, "training": Training(epochs=2)}


class TestConformance(AlgorithmConformance):
    algorithm = Transformer
    options = SMALL

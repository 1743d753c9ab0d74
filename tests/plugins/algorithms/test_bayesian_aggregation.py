"""The contract and the known answers, for `bayesian-aggregation`."""

from metarec.learning import Training
from metarec.plugins.algorithms.bayesian_aggregation import BayesianAggregation
from metarec.testing import AlgorithmConformance

SMALL = {"size": 4, "latent": 3, "hidden": 8, "training": Training(epochs=2)}


class TestConformance(AlgorithmConformance):
    algorithm = BayesianAggregation
    options = SMALL

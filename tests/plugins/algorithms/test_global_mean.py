"""The mean of all ratings."""

import torch

from metarec.plugins.algorithms.global_mean import GlobalMean
from metarec.testing import AlgorithmConformance


class TestConformance(AlgorithmConformance):
    algorithm = GlobalMean


def test_mean_and_variance_of_all_training_ratings(explicit, frame):
    rating = frame(explicit.train)["rating"]
    fitted = GlobalMean().fit(explicit.train)
    for cell in explicit.cells:
        found = fitted.predict(fitted.adapt(cell.tasks.support), cell.tasks.query)
        count = len(cell.tasks.query.partner)
        assert torch.allclose(found.mean, torch.full((count,), rating.mean()).float())
        assert torch.allclose(found.variance, torch.full((count,), rating.var(ddof=0)).float())

"""The median of a task's own ratings, against pandas."""

import numpy as np

from metarec.plugins.algorithms.entity_median import EntityMedian
from metarec.testing import AlgorithmConformance


class TestConformance(AlgorithmConformance):
    algorithm = EntityMedian


def within(ratings, side):
    """Mean square around each entity's median, one degree of freedom less for each entity."""
    residual = ratings["rating"] - ratings.groupby(side)["rating"].transform("median")
    return (residual**2).sum() / (len(ratings) - ratings[side].nunique())


def test_median_and_mean_square_of_each_task(explicit, frame, supports):
    ratings = frame(explicit.train)
    middle = ratings["rating"].median()
    around = ((ratings["rating"] - middle) ** 2).mean()
    fitted = EntityMedian().fit(explicit.train)
    for cell in explicit.cells:
        tasks = cell.tasks
        noise = within(ratings, tasks.support.side)
        own = supports(tasks)
        median = [np.median(part) if len(part) else middle for part in own]
        variance = [noise * (1 + 1 / len(part)) if len(part) else around for part in own]
        found = fitted.predict(fitted.adapt(tasks.support), tasks.query)
        counts = tasks.query.counts.numpy()
        assert np.array_equal(found.mean, np.repeat(median, counts))
        assert np.allclose(found.variance, np.repeat(variance, counts), rtol=1e-5)

"""The mean of a task's own ratings, against pandas."""

import numpy as np
import pytest
import torch

from metarec.plugins.algorithms.entity_mean import EntityMean
from metarec.testing import AlgorithmConformance


class TestConformance(AlgorithmConformance):
    algorithm = EntityMean


def within(ratings, side):
    """Variance around each entity's mean, one degree of freedom less for each entity."""
    residual = ratings["rating"] - ratings.groupby(side)["rating"].transform("mean")
    return (residual**2).sum() / (len(ratings) - ratings[side].nunique())


def test_mean_and_variance_of_each_task(explicit, frame, supports):
    ratings = frame(explicit.train)
    fitted = EntityMean().fit(explicit.train)
    for cell in explicit.cells:
        tasks = cell.tasks
        noise = within(ratings, tasks.support.side)
        own = supports(tasks)
        mean = [part.mean() if len(part) else ratings["rating"].mean() for part in own]
        variance = [
            noise * (1 + 1 / len(part)) if len(part) else ratings["rating"].var(ddof=0) for part in own
        ]
        found = fitted.predict(fitted.adapt(tasks.support), tasks.query)
        counts = tasks.query.counts.numpy()
        assert np.allclose(found.mean, np.repeat(mean, counts), rtol=1e-5)
        assert np.allclose(found.variance, np.repeat(variance, counts), rtol=1e-5)


def test_sides_have_variances_of_their_own(explicit):
    fitted = EntityMean().fit(explicit.train)
    assert fitted.within_["user"] != pytest.approx(fitted.within_["item"], rel=1e-3)


def test_the_variance_stays_positive_where_nothing_is_left_to_estimate_it_from(explicit):
    """Every user has one rating: its residual is 0 and there is no degree of freedom."""
    train = explicit.train
    first = torch.stack([(train.user == row).int().argmax() for row in range(5)])
    assert EntityMean().fit(train.take(first)).within_["user"] == 1e-6

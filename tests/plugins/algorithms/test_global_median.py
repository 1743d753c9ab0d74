"""The median of all ratings."""

import numpy as np
import pytest
import torch

from metarec.plugins.algorithms.global_median import GlobalMedian
from metarec.testing import AlgorithmConformance


class TestConformance(AlgorithmConformance):
    algorithm = GlobalMedian


def test_median_and_mean_square_around_it(explicit, frame):
    rating = frame(explicit.train)["rating"]
    fitted = GlobalMedian().fit(explicit.train)
    assert rating.median() != pytest.approx(rating.mean())
    for cell in explicit.cells:
        found = fitted.predict(fitted.adapt(cell.tasks.support), cell.tasks.query)
        assert torch.equal(found.mean, torch.full_like(found.mean, rating.median()))
        expected = np.mean((rating - rating.median()) ** 2)
        assert torch.allclose(found.variance, torch.full_like(found.mean, expected))


def test_of_an_even_number_of_ratings_it_is_midway(explicit):
    two = explicit.train.take(
        torch.tensor([0, (explicit.train.rating != explicit.train.rating[0]).int().argmax()])
    )
    assert GlobalMedian().fit(two).median_ == pytest.approx(float(two.rating.mean()))

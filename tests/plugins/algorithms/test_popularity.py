"""Counts, and the line from counts to ratings, against NumPy."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from metarec.data import partner_side
from metarec.plugins.algorithms.popularity import Popularity
from metarec.testing import AlgorithmConformance


class TestConformance(AlgorithmConformance):
    algorithm = Popularity


def predicted(fitted, tasks):
    return fitted.predict(fitted.adapt(tasks.support), tasks.query)


def counts(train, side, frame):
    """Training ratings of each partner of tasks on a side."""
    partner = partner_side(side)
    return (
        frame(train)[partner]
        .value_counts()
        .reindex(range(len(train.entities(partner))), fill_value=0)
        .to_numpy()
    )


def test_implicit_scores_are_shares_of_the_known_and_zero_for_the_new(implicit, frame):
    fitted = Popularity().fit(implicit.train)
    for cell in implicit.cells:
        side, rows = cell.tasks.support.side, cell.tasks.query.partners.rows[cell.tasks.query.partner].numpy()
        share = counts(implicit.train, side, frame) / len(implicit.train.entities(side))
        found = predicted(fitted, cell.tasks)
        assert np.allclose(found.mean, np.where(rows < 0, 0, share[rows]))
        assert found.variance is None


def test_explicit_means_are_on_the_line_of_least_squares(explicit, frame):
    ratings = frame(explicit.train)
    fitted = Popularity().fit(explicit.train)
    for cell in explicit.cells:
        side, rows = cell.tasks.support.side, cell.tasks.query.partners.rows[cell.tasks.query.partner].numpy()
        popularity = np.log1p(counts(explicit.train, side, frame))
        x = popularity[ratings[partner_side(side)]]
        slope, intercept = np.polyfit(x, ratings["rating"], 1)
        slope = max(slope, 1e-3 * ratings["rating"].std(ddof=0))
        intercept = ratings["rating"].mean() - slope * x.mean()
        found = predicted(fitted, cell.tasks)
        expected = np.where(rows < 0, ratings["rating"].mean(), intercept + slope * popularity[rows])
        assert np.allclose(found.mean, expected, rtol=1e-5)
        assert np.allclose(
            found.variance, np.mean((ratings["rating"] - intercept - slope * x) ** 2), rtol=1e-5
        )


def liking(train, sign):
    """Ratings that rise, or fall, with how popular an item is."""
    count = torch.bincount(train.item, minlength=len(train.items)).float()
    noise = torch.rand(len(train), generator=torch.Generator().manual_seed(0))
    return replace(train, rating=3 + sign * count.log1p()[train.item.long()] + noise)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_order_is_always_by_count(explicit, frame, sign):
    """Also where popular items are rated lower, the predicted mean rises with the count."""
    train = liking(explicit.train, sign)
    fitted = Popularity().fit(train)
    count, mean = counts(train, "user", frame), fitted.score_["user"].numpy()
    order = np.argsort(mean, kind="stable")
    assert (np.diff(count[order]) >= 0).all()
    assert len(np.unique(mean)) == len(np.unique(count)) > 5
    slope = np.polyfit(np.log1p(count), mean, 1)[0]
    assert slope == pytest.approx(1, abs=0.1) if sign > 0 else slope == pytest.approx(0, abs=0.01)

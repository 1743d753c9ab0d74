"""Matrix factorisation: where its descent ends, its folding in, and Surprise's SVD as a peer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from metarec import load_dataset, split
from metarec.data import Dataset, Side, partner_side
from metarec.learning import Descent, Run
from metarec.ops import cosine_sgd_epoch_
from metarec.plugins.algorithms.mf import SIDES, MatrixFactorisation
from metarec.tasks import EntityRows, Ragged, Support
from metarec.testing import AlgorithmConformance
from metarec.testing.world import small_world

SMALL = {"descent": Descent(rank=3, epochs=10, learning_rate=0.05)}


class TestConformance(AlgorithmConformance):
    algorithm = MatrixFactorisation
    options = SMALL


def test_descent_ends_where_every_row_is_the_ridge_regression_that_folds_in():
    """With a prior that says nothing, folding the known entities in gives back the rows at which descent ends."""
    train, l2 = small_world().split.train, 0.1
    fitted = MatrixFactorisation(descent=Descent(rank=2, epochs=1, l2=l2)).fit(
        train, run=Run(dtype=torch.float64)
    )
    rating = (train.rating.double() - fitted.mean_) / fitted.deviation_
    generator = torch.Generator().manual_seed(0)
    tables = [0.3 * torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (48, 32)]
    biases = [torch.zeros(n, dtype=torch.float64) for n in (48, 32)]
    head = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for epoch in range(3000):
        lr = 0.05 / (1 + epoch / 50)
        data = train.user, train.item, rating
        cosine_sgd_epoch_(
            *tables, *biases, head, *data, lr=lr, l2=l2, similarity="dot", seed=epoch, head_lr=0
        )
    found = [torch.cat([bias[:, None], table], 1) for bias, table in zip(biases, tables, strict=True)]
    assert all(rows[:, 1:].abs().max() > 0.3 for rows in found), "the factors should not have vanished"
    fitted.known_ = dict(zip(("user", "item"), found, strict=True))
    fitted.prior_covariance_ = dict.fromkeys(("user", "item"), 1e9 * torch.eye(3, dtype=torch.float64))
    for side, rows in (("user", found[0]), ("item", found[1])):
        folded = fitted.adapt(everything(train, side))
        torch.testing.assert_close(folded.mean, rows, rtol=0, atol=2e-3)


def everything(train: Dataset, side: Side) -> Support:
    """All training ratings as the supports of all entities of a side."""
    lists = Ragged.grouped(train.rows(side).long(), len(train.entities(side)))
    tables = {s: EntityRows(torch.arange(len(train.entities(s))), train.entities(s).features) for s in SIDES}
    return Support(
        offsets=lists.offsets,
        partner=train.rows(partner_side(side)).long()[lists.partner],
        side=side,
        entities=tables[side],
        partners=tables[partner_side(side)],
        rating=train.rating[lists.partner].double(),
    )


@pytest.mark.parametrize("scenario", ["new-user", "new-item"])
def test_folding_in_is_ridge_regression_around_the_known(scenario):
    fitted = MatrixFactorisation(**SMALL).fit(small_world().split.train, run=Run(dtype=torch.float64))
    tasks = small_world().tasks(scenario)
    support, query = tasks.support.to(dtype=torch.float64), tasks.query.to(dtype=torch.float64)
    prediction = fitted.predict(fitted.adapt(support), query)
    own, other = ("user", "item") if scenario == "new-user" else ("item", "user")
    table = fitted.known_[other].numpy()
    prior, spread = fitted.prior_mean_[own].numpy(), fitted.prior_covariance_[own].numpy()
    for task in range(len(tasks)):
        rows = slice(*support.offsets[task : task + 2].tolist())
        partners = table[support.partners.rows[support.partner[rows]].numpy()]
        asked = query.partners.rows[query.partner[query.owner == task]].numpy()
        design = np.column_stack([np.ones(len(partners)), partners[:, 1:]])
        at = np.column_stack([np.ones(len(asked)), table[asked, 1:]])
        rating = (support.rating[rows].numpy() - fitted.mean_) / fitted.deviation_
        # The λ of each rating is as good as ratings of 0 for √λ times the unit vectors: least squares, prior included.
        root = np.linalg.cholesky(np.linalg.inv(spread)).T
        ridge = np.sqrt(fitted.descent.l2 * len(rating) / fitted.noise_) * np.eye(len(prior))
        left = np.vstack([root, design / np.sqrt(fitted.noise_), ridge])
        target = (rating - partners[:, 0]) / np.sqrt(fitted.noise_)
        right = np.concatenate([root @ prior, target, np.zeros(len(prior))])
        mean = table[asked, 0] + at @ np.linalg.lstsq(left, right)[0]
        unknown = np.square(at @ np.linalg.pinv(left)).sum(1)
        here = (query.owner == task).numpy()
        np.testing.assert_allclose(
            prediction.mean.numpy()[here], fitted.mean_ + fitted.deviation_ * mean, atol=1e-9
        )
        np.testing.assert_allclose(
            prediction.variance.numpy()[here], fitted.deviation_**2 * (unknown + fitted.noise_), atol=1e-9
        )


def test_warm_movielens_is_predicted_better_than_by_surprise(movielens: Path):
    surprise = pytest.importorskip("surprise", reason="needs scikit-surprise, of the extra [bench]")
    import pandas as pd

    made = split(load_dataset("movielens", path=movielens / "ml-100k"), "warm", seed=0)
    tasks = made.cells[0].tasks
    fitted = MatrixFactorisation().fit(made.train)
    predicted = fitted.predict(fitted.adapt(tasks.support), tasks.query).mean.clamp(1, 5)
    ours = float((predicted - tasks.rating).abs().mean())
    frame = pd.DataFrame({"u": made.train.user, "i": made.train.item, "r": made.train.rating})
    data = surprise.Dataset.load_from_df(frame, surprise.Reader(rating_scale=(1, 5)))
    peer = surprise.SVD(random_state=0).fit(data.build_full_trainset())
    user = tasks.support.entities.rows[tasks.query.owner].tolist()
    item = tasks.query.partners.rows[tasks.query.partner].tolist()
    theirs = np.abs([peer.predict(u, i).est for u, i in zip(user, item, strict=True)] - tasks.rating.numpy())
    assert ours < 0.737  # Surprise's own figure for five folds
    assert ours < theirs.mean() - 0.005

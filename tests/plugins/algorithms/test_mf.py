"""Matrix factorisation: the contract, and Surprise's SVD as a peer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from metarec import load_dataset, split
from metarec.data import partner_side
from metarec.learning import Descent, Run
from metarec.plugins.algorithms.mf import MatrixFactorisation
from metarec.testing import AlgorithmConformance
from metarec.testing.oracles.factorisation import everything
from metarec.testing.world import small_world


class TestConformance(AlgorithmConformance):
    algorithm = MatrixFactorisation
    options = {"descent": Descent(rank=3, epochs=10, learning_rate=0.05)}  # noqa: RUF012


def test_a_new_partner_is_one_that_is_met_in_a_rating():
    """Mean and variance of a rating of both new: moments over the training ratings' partners and all entities."""
    world = small_world()
    train, tasks = world.split.train, world.tasks("new-both")
    learner = MatrixFactorisation(descent=Descent(rank=3, epochs=10, learning_rate=0.05), iterations=300)
    learner.fit(train, run=Run(dtype=torch.float64))
    side, query = tasks.support.side, tasks.query
    asked = (query.partners.rows[query.partner] < 0).numpy()
    assert asked.any()
    nothing = learner.adapt(tasks.support.to(dtype=torch.float64).first(0))
    found = learner.predict(nothing, query)
    entities, partners = (learner.adapt(everything(train, its)) for its in (side, partner_side(side)))
    theta, left_open = (part.numpy() for part in (entities.mean, torch.cholesky_inverse(entities.cholesky)))
    spread = left_open.mean(0) + np.cov(theta.T, bias=True)
    met = train.rows(partner_side(side)).numpy()
    rows, unknown = (part.numpy()[met] for part in (partners.mean, torch.cholesky_inverse(partners.cholesky)))
    pattern = np.append(1, rows.mean(0)[1:])
    mean = rows.mean(0)[0] + pattern @ theta.mean(0)
    other = np.append(1, theta.mean(0)[1:])
    moment = np.outer(other, other)
    moment[1:, 1:] += spread[1:, 1:]
    of_partner = ((unknown.mean(0) + np.cov(rows.T, bias=True)) * moment).sum()
    variance = learner.noise_ + pattern @ spread @ pattern + of_partner
    np.testing.assert_allclose(found.mean[asked], learner.mean_ + learner.deviation_ * mean, rtol=1e-6)
    np.testing.assert_allclose(found.variance[asked], learner.deviation_**2 * variance, rtol=1e-6)


def test_a_rating_of_a_new_partner_varies_more_but_has_no_ridge():
    """Every other partner is taken for new."""
    world = small_world()
    learner = MatrixFactorisation(descent=Descent(rank=3, epochs=10, learning_rate=0.05, l2=0.3))
    learner.fit(world.split.train, run=Run(dtype=torch.float64))
    support = world.tasks("new-user").support.to(dtype=torch.float64)
    some = torch.arange(len(support.partners)) % 2 == 0
    partners = replace(support.partners, rows=support.partners.rows.masked_fill(some, -1))
    support = replace(support, partners=partners)
    side = support.side
    rows = support.partners.rows[support.partner]
    known = learner.known_[partner_side(side)]
    theta = torch.where((rows >= 0)[:, None], known[rows], learner.met_mean_[partner_side(side)])
    found = learner.adapt(support)
    for task in range(len(support)):
        precision = torch.linalg.inv(learner.prior_covariance_[side])
        for row, partner in zip(rows[support.owner == task], theta[support.owner == task], strict=True):
            pattern = torch.cat([torch.ones(1), partner[1:]])
            more = learner.noise_of_new_[side] if row < 0 else 0.0
            precision = precision + torch.outer(pattern, pattern) / (learner.noise_ + more)
            precision += (0.3 / learner.noise_ if row >= 0 else 0.0) * torch.eye(4)
        torch.testing.assert_close(found.cholesky[task] @ found.cholesky[task].mT, precision)
    assert 0 < int((rows < 0).sum()) < len(rows)


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

"""Weighted alternating least squares against ridge over the full matrix, and against the library `implicit`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metarec.data import Dataset
from metarec.learning import Run
from metarec.plugins.algorithms.ials import IALS
from metarec.tasks import Query, Support
from metarec.testing import AlgorithmConformance
from metarec.testing.oracles.check import tasks_of
from metarec.testing.world import small_world

SMALL = {"rank": 4, "iterations": 3}


class TestConformance(AlgorithmConformance):
    algorithm = IALS
    options = SMALL


@pytest.fixture(scope="module")
def train() -> Dataset:
    return small_world(implicit=True).split.train


@pytest.fixture(scope="module")
def fitted(train: Dataset) -> IALS:
    return IALS(rank=4, iterations=3, confidence=7.0, regularization=0.5).fit(
        train, run=Run(dtype=torch.float64)
    )


def ridge(chosen: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """The minimum of ``Σ c (p − xᵀy)² + λ‖x‖²`` over all rows of `factors`, by least squares on scaled rows."""
    weight = np.sqrt(np.where(chosen, 7.0, 1.0))
    rows = np.concatenate([weight[:, None] * factors, np.sqrt(0.5) * np.eye(factors.shape[1])])
    target = np.concatenate([weight * chosen, np.zeros(factors.shape[1])])
    return np.linalg.lstsq(rows, target, rcond=None)[0]


def objective(users: np.ndarray, items: np.ndarray, chosen: np.ndarray) -> float:
    square = np.where(chosen, 7.0, 1.0) * (chosen - users @ items.T) ** 2
    return float(square.sum() + 0.5 * ((users**2).sum() + (items**2).sum()))


def test_a_new_user_is_weighted_ridge_over_the_full_matrix(fitted: IALS):
    support = tasks_of("new-user", implicit=True).support
    items, found = fitted.factors_["item"].numpy(), fitted.adapt(support).factors
    for task in range(len(support)):
        chosen = np.zeros(len(items))
        chosen[support.partners.rows[support.partner[support.offsets[task] : support.offsets[task + 1]]]] = 1
        assert found[task].numpy() == pytest.approx(ridge(chosen, items), abs=1e-10)


def test_a_users_factors_are_the_ridge_of_what_it_chose(fitted: IALS, train: Dataset):
    chosen = np.zeros((len(train.users), len(train.items)))
    chosen[train.user, train.item] = 1
    expected = np.stack([ridge(row, fitted.factors_["item"].numpy()) for row in chosen])
    assert fitted.factors_["user"].numpy() == pytest.approx(expected, abs=1e-10)


def test_every_sweep_lowers_the_objective(train: Dataset):
    chosen = np.zeros((len(train.users), len(train.items)))
    chosen[train.user, train.item] = 1
    values = []
    for iterations in (1, 2, 4, 8):
        made = IALS(rank=4, iterations=iterations, confidence=7.0, regularization=0.5)
        made.fit(train, run=Run(dtype=torch.float64))
        values.append(objective(made.factors_["user"].numpy(), made.factors_["item"].numpy(), chosen))
    assert values == sorted(values, reverse=True) and values[-1] < 0.99 * values[0]


def test_the_library_implicit_folds_users_in_alike(fitted: IALS, train: Dataset):
    als = pytest.importorskip("implicit.als", reason="needs the peer `implicit`")
    sparse = pytest.importorskip("scipy.sparse")
    peer = als.AlternatingLeastSquares(
        factors=4, regularization=0.5, alpha=1.0, use_gpu=False, dtype=np.float64, num_threads=1
    )
    peer.item_factors = fitted.factors_["item"].numpy()
    values = np.full(train.user.numel(), 7.0)
    shape = len(train.users), len(train.items)
    matrix = sparse.csr_matrix((values, (train.user.numpy(), train.item.numpy())), shape=shape)
    found = peer.recalculate_user(np.arange(len(train.users)), matrix)
    assert found == pytest.approx(fitted.factors_["user"].numpy(), abs=1e-6)


def test_partners_without_factors_score_nothing(fitted: IALS):
    tasks = tasks_of("new-both", implicit=True)
    support: Support = tasks.support.first(0)
    query: Query = tasks.query
    assert fitted.predict(fitted.adapt(support), query).mean.abs().max() == 0

"""Weighted alternating least squares: the contract, and the library `implicit` as a peer."""

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

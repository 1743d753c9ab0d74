"""Matrix factorisation: the contract, and Surprise's SVD as a peer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metarec import load_dataset, split
from metarec.learning import Descent
from metarec.plugins.algorithms.mf import MatrixFactorisation
from metarec.testing import AlgorithmConformance


class TestConformance(AlgorithmConformance):
    algorithm = MatrixFactorisation
    options = {"descent": Descent(rank=3, epochs=10, learning_rate=0.05)}  # noqa: RUF012


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

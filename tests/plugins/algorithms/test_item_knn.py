"""Item neighbours against the formula written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metarec.data import Dataset
from metarec.learning import Run
from metarec.plugins.algorithms.item_knn import ItemKNN
from metarec.testing import AlgorithmConformance
from metarec.testing.oracles.check import tasks_of
from metarec.testing.world import small_world


class TestConformance(AlgorithmConformance):
    algorithm = ItemKNN
    options = {"neighbours": 5}  # noqa: RUF012


def baseline(train: Dataset) -> tuple[float, np.ndarray, np.ndarray]:
    """Mean, items' biases, and what users said of items less the baseline."""
    user, item, rating = train.user.numpy(), train.item.numpy(), train.rating.numpy().astype(float)
    mean, columns = rating.mean(), np.zeros((len(train.items), len(train.users)))
    of_item = np.array(
        [(rating[item == i] - mean).sum() / ((item == i).sum() + 5) for i in range(len(columns))]
    )
    for u in range(len(train.users)):
        held = user == u
        residual = rating[held] - mean - of_item[item[held]]
        columns[item[held], u] = residual - residual.sum() / (held.sum() + 5)
    return mean, of_item, columns


def neighbours(columns: np.ndarray, count: int, shrinkage: float) -> list[dict[int, float]]:
    """Of each item its nearest and their similarities."""
    found = []
    for i, own in enumerate(columns):
        near = {
            j: own @ other / np.sqrt((own @ own + shrinkage) * (other @ other + shrinkage))
            for j, other in enumerate(columns)
            if j != i
        }
        best = sorted(near, key=lambda j: -near[j])[:count]
        found.append({j: near[j] for j in best if near[j] > 0})
    return found


@pytest.mark.parametrize("scenario", ["warm", "new-user"])
def test_explicit_is_the_baseline_and_weighted_deviations(scenario: str):
    train, tasks = small_world().split.train, tasks_of(scenario)
    fitted = ItemKNN(neighbours=6, shrinkage=3.0).fit(train, run=Run(dtype=torch.float64))
    mean, of_item, columns = baseline(train)
    near = neighbours(columns, 6, 3.0)
    expected = []
    for task in range(len(tasks)):
        support, query = tasks.support.select(torch.tensor([task])), tasks.query.select(torch.tensor([task]))
        held = support.partners.rows[support.partner].numpy()
        residual = support.rating.numpy() - mean - of_item[held]
        bias = residual.sum() / (len(held) + 5)
        away = dict(zip(held, residual - bias, strict=True))
        for i in query.partners.rows[query.partner].tolist():
            both = [j for j in near[i] if j in away]
            weight = sum(near[i][j] for j in both)
            pull = sum(near[i][j] * away[j] for j in both) / (1 + weight)
            expected.append(mean + bias + of_item[i] + pull)
    assert fitted.predict(fitted.adapt(tasks.support), tasks.query).mean.numpy() == pytest.approx(expected)


def test_implicit_is_the_sum_of_similarities():
    train, tasks = small_world(implicit=True).split.train, tasks_of("new-user", implicit=True)
    fitted = ItemKNN(neighbours=6, shrinkage=3.0).fit(train, run=Run(dtype=torch.float64))
    columns = np.zeros((len(train.items), len(train.users)))
    columns[train.item, train.user] = 1
    assert np.allclose(
        fitted.similarity_.numpy(),
        [sorted(near.values(), reverse=True) for near in neighbours(columns, 6, 3.0)],
    )
    prediction = fitted.predict(fitted.adapt(tasks.support), tasks.query).mean
    for entry, owner in enumerate(tasks.query.owner.tolist()):
        begin, end = tasks.support.offsets[owner : owner + 2].tolist()
        held = set(tasks.support.partners.rows[tasks.support.partner[begin:end]].tolist())
        i = int(tasks.query.partners.rows[tasks.query.partner[entry]])
        near = zip(fitted.neighbour_[i].tolist(), fitted.similarity_[i].tolist(), strict=True)
        assert prediction[entry].item() == pytest.approx(sum(s for j, s in near if j in held))


def test_the_similarity_is_the_cosine_without_shrinkage():
    pairwise = pytest.importorskip("sklearn.metrics.pairwise", reason="needs the peer scikit-learn")
    train = small_world(implicit=True).split.train
    fitted = ItemKNN(neighbours=31, shrinkage=0.0).fit(train, run=Run(dtype=torch.float64))
    columns = np.zeros((len(train.items), len(train.users)))
    columns[train.item, train.user] = 1
    cosine = pairwise.cosine_similarity(columns)
    found = np.zeros_like(cosine)
    np.put_along_axis(found, fitted.neighbour_.numpy(), fitted.similarity_.numpy(), 1)
    np.fill_diagonal(cosine, 0)
    assert found == pytest.approx(cosine, abs=1e-9)

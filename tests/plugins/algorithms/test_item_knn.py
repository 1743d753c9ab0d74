"""Item neighbours: the contract, and the cosine of scikit-learn as a peer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metarec.learning import Run
from metarec.plugins.algorithms.item_knn import ItemKNN
from metarec.testing import AlgorithmConformance
from metarec.testing.world import small_world


class TestConformance(AlgorithmConformance):
    algorithm = ItemKNN
    options = {"neighbours": 5}  # noqa: RUF012


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

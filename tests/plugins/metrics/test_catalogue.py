"""What else is to say of lists, on lists made at random and by hand; held against scikit-learn and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from sklearn.metrics.pairwise import cosine_distances

from metarec.data import Features, RatingScale
from metarec.evaluation import Catalogue, Scored
from metarec.pluginmanager import create_plugin_manager

METRICS = create_plugin_manager(installed=False).metrics


def features_of(matrix: np.ndarray) -> Features:
    rows, columns = np.nonzero(matrix)
    values = torch.tensor(matrix[rows, columns])
    count, width = matrix.shape
    return Features.from_entries(torch.tensor(rows), torch.tensor(columns), values, count=count, width=width)


def lists_of(
    top: np.ndarray, matrix: np.ndarray, popularity: np.ndarray, population: int, seen=None
) -> Scored:
    """Lists over a catalogue whose query is of no interest."""
    tasks, depth = top.shape
    none = torch.zeros(0, dtype=torch.int64)
    return Scored(
        scale=RatingScale(1.0, 5.0, relevant_from=4.0),
        offsets=torch.zeros(tasks + 1, dtype=torch.int64),
        rating=none.double(),
        mean=none.double(),
        variance=None,
        start=none,
        size=none,
        depth=depth,
        top=torch.tensor(top),
        seen=torch.zeros(tasks, depth, dtype=torch.bool) if seen is None else torch.tensor(seen),
        catalogue=Catalogue(features_of(matrix), torch.tensor(popularity), population),
    )


def score(name: str, k: int, lists: Scored) -> np.ndarray:
    return METRICS.create(name, k=k).score(lists).numpy()


@pytest.fixture
def random_lists():
    """300 lists, more than are held at a time, of 6 out of 40 candidates; and what they are made of."""
    random = np.random.default_rng(0)
    top = np.array([random.permutation(40)[:6] for _ in range(300)])
    matrix = random.normal(size=(40, 7)) * (random.random((40, 7)) < 0.5)
    matrix[:, 0] = 1.0
    popularity, seen = random.integers(0, 100, 40), random.random((300, 6)) < 0.3
    return top, matrix, popularity, seen, lists_of(top, matrix, popularity, 120, seen)


@pytest.mark.parametrize("k", [2, 6])
def test_diversity_is_the_mean_cosine_distance(random_lists, k: int) -> None:
    top, matrix, _, _, lists = random_lists
    expected = [pdist(matrix[its[:k]], "cosine").mean() for its in top]
    np.testing.assert_allclose(score("diversity", k, lists), expected, rtol=1e-12, atol=1e-12)
    distances = cosine_distances(matrix)[top[0, :k][:, None], top[0, :k]]
    assert score("diversity", k, lists)[0] == pytest.approx(distances.sum() / (k * (k - 1)))


@pytest.mark.parametrize("k", [1, 4])
def test_novelty_coverage_and_unseen_of_random_lists(random_lists, k: int) -> None:
    top, _, popularity, seen, lists = random_lists
    information = -np.log2((popularity + 1) / 122)
    np.testing.assert_allclose(score("novelty", k, lists), information[top[:, :k]].mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(score("unseen", k, lists), 1 - seen[:, :k].mean(axis=1), rtol=1e-12)
    assert score("coverage", k, lists) == len(np.unique(top[:, :k])) / 40


def test_what_has_no_features_is_unlike_everything() -> None:
    matrix = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    lists = lists_of(np.array([[0, 1], [0, 2], [2, 3]]), matrix, np.zeros(4, dtype=int), 1)
    np.testing.assert_allclose(score("diversity", 2, lists), [0.0, 1.0, 1.0], atol=1e-15)


def test_short_lists_count_what_they_have() -> None:
    matrix, popularity = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 7])
    lists = lists_of(np.array([[0, 1], [1, -1], [-1, -1]]), matrix, popularity, 14)
    novelty, diversity = score("novelty", 2, lists), score("diversity", 2, lists)
    assert novelty[:2].tolist() == [(4 + 1) / 2, 1.0]  # −log₂(1/16) and −log₂(8/16)
    assert math.isnan(novelty[2])
    assert diversity[0] == 1.0
    assert np.isnan(diversity[1:]).all()
    assert score("coverage", 2, lists) == 1.0
    assert score("coverage", 1, lists) == 1.0

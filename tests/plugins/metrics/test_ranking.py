"""Ranking metrics: against every order of the tied, by hand, and against scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, ndcg_score, precision_score, recall_score

from metarec.data import RatingScale
from metarec.evaluation import Metric, Scored
from metarec.pluginmanager import create_plugin_manager

SCALE = RatingScale(1.0, 5.0, relevant_from=4.0, step=1.0)
METRICS = create_plugin_manager(installed=False).metrics


def metric(name: str, k: int) -> Metric:
    return METRICS.create(name, k=k)


def score_one(its: Metric, ratings: list[float], scores: list[float]) -> float:
    offsets = torch.tensor([0, len(ratings)])
    return float(its.score(Scored.of_query(SCALE, offsets, torch.tensor(ratings), torch.tensor(scores)))[0])


def precision(ranked: list[float], k: int) -> float:
    return sum(r >= 4 for r in ranked[:k]) / k


def recall(ranked: list[float], k: int) -> float:
    return sum(r >= 4 for r in ranked[:k]) / sum(r >= 4 for r in ranked)


def hit(ranked: list[float], k: int) -> float:
    return float(any(r >= 4 for r in ranked[:k]))


def mrr(ranked: list[float], k: int) -> float:
    return next((1 / p for p, r in enumerate(ranked[:k], 1) if r >= 4), 0.0)


def average_precision(ranked: list[float], k: int) -> float:
    total = sum(precision(ranked, p) for p, r in enumerate(ranked[:k], 1) if r >= 4)
    return total / min(k, sum(r >= 4 for r in ranked))


def ndcg(gain: Callable[[float], float]) -> Callable[[list[float], int], float]:
    def dcg(ranked: list[float], k: int) -> float:
        return sum(gain(r) / math.log2(p + 1) for p, r in enumerate(ranked[:k], 1))

    return lambda ranked, k: dcg(ranked, k) / dcg(sorted(ranked, reverse=True), k)


PLAIN = {
    "precision": precision,
    "recall": recall,
    "hit": hit,
    "mrr": mrr,
    "map": average_precision,
    "ndcg_linear": ndcg(lambda r: r),
    "ndcg_exp": ndcg(lambda r: 2**r - 1),
}


def tie_orders(ratings: list[float], scores: list[float]) -> Iterator[list[float]]:
    """The ratings in every order that the scores allow."""
    groups = [
        [r for r, s in zip(ratings, scores, strict=True) if s == level]
        for level in sorted(set(scores), reverse=True)
    ]
    for orders in product(*(permutations(group) for group in groups)):
        yield [rating for order in orders for rating in order]


@pytest.mark.parametrize("name", PLAIN)
@given(
    pairs=st.lists(
        st.tuples(st.sampled_from([1.0, 2.0, 3.0, 4.0, 5.0]), st.integers(0, 2)), min_size=1, max_size=6
    ),
    k=st.integers(1, 7),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_mean_over_all_orders_of_the_tied(
    name: str, pairs: list[tuple[float, int]], k: int
) -> None:
    ratings, scores = [r for r, _ in pairs], [float(s) for _, s in pairs]
    value = score_one(metric(name, k), ratings, scores)
    if not any(r >= 4 for r in ratings):
        assert math.isnan(value)
        return
    orders = list(tie_orders(ratings, scores))
    expected = sum(PLAIN[name](ranked, k) for ranked in orders) / len(orders)
    assert value == pytest.approx(expected, abs=1e-12)


# Relevant at positions 2 and 3 of 4: ratings 3, 5, 4, 1 in this order.
@pytest.mark.parametrize(
    ("name", "k", "expected"),
    [
        ("precision", 3, 2 / 3),
        ("recall", 2, 1 / 2),
        ("hit", 1, 0.0),
        ("mrr", 3, 1 / 2),
        ("map", 3, (1 / 2 + 2 / 3) / 2),
        ("ndcg_linear", 2, (3 + 5 / math.log2(3)) / (5 + 4 / math.log2(3))),
        ("ndcg_exp", 2, (7 + 31 / math.log2(3)) / (31 + 15 / math.log2(3))),
    ],
)
def test_by_hand(name: str, k: int, expected: float) -> None:
    assert score_one(metric(name, k), [3.0, 5.0, 4.0, 1.0], [9.0, 8.0, 7.0, 6.0]) == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 5, 10, 40])
def test_linear_ndcg_equals_scikit_learn(k: int) -> None:
    random = np.random.default_rng(k)
    ratings, scores = random.integers(1, 6, (50, 20)), random.integers(0, 8, (50, 20))  # with many ties
    ratings[:, 0] = 5
    scored = Scored.of_query(
        SCALE, torch.arange(51) * 20, torch.tensor(ratings.ravel()), torch.tensor(scores.ravel()).double()
    )
    expected = [ndcg_score([r], [s], k=k) for r, s in zip(ratings, scores, strict=True)]
    np.testing.assert_allclose(metric("ndcg_linear", k).score(scored), expected, rtol=1e-12)


def test_exponential_ndcg_equals_scikit_learn_on_its_gains() -> None:
    random = np.random.default_rng(0)
    ratings, scores = random.integers(1, 6, (50, 20)), random.integers(0, 8, (50, 20))
    ratings[:, 0] = 5
    scored = Scored.of_query(
        SCALE, torch.arange(51) * 20, torch.tensor(ratings.ravel()), torch.tensor(scores.ravel()).double()
    )
    expected = [ndcg_score([2**r - 1], [s], k=5) for r, s in zip(ratings, scores, strict=True)]
    np.testing.assert_allclose(metric("ndcg_exp", 5).score(scored), expected, rtol=1e-12)


def test_map_of_whole_lists_equals_scikit_learn() -> None:
    random = np.random.default_rng(1)
    ratings, scores = random.integers(1, 6, (50, 20)), random.normal(size=(50, 20))
    ratings[:, 0] = 5
    scored = Scored.of_query(
        SCALE, torch.arange(51) * 20, torch.tensor(ratings.ravel()), torch.tensor(scores.ravel())
    )
    expected = [average_precision_score(r >= 4, s) for r, s in zip(ratings, scores, strict=True)]
    np.testing.assert_allclose(metric("map", 20).score(scored), expected, rtol=1e-12)


@pytest.mark.parametrize(("name", "oracle"), [("precision", precision_score), ("recall", recall_score)])
def test_precision_and_recall_equal_scikit_learn(name: str, oracle: Callable[..., float]) -> None:
    random = np.random.default_rng(2)
    ratings, scores = random.integers(1, 6, (50, 20)), random.normal(size=(50, 20))
    ratings[:, 0] = 5
    scored = Scored.of_query(
        SCALE, torch.arange(51) * 20, torch.tensor(ratings.ravel()), torch.tensor(scores.ravel())
    )
    chosen = scores.argsort(axis=1).argsort(axis=1) >= 20 - 7
    expected = [oracle(r >= 4, its) for r, its in zip(ratings, chosen, strict=True)]
    np.testing.assert_allclose(metric(name, 7).score(scored), expected, rtol=1e-12)


def test_reciprocal_rank_equals_that_of_scipys_ranks() -> None:
    random = np.random.default_rng(3)
    ratings, scores = random.integers(1, 6, (50, 20)), random.normal(size=(50, 20))
    ratings[:, 0] = 5
    scored = Scored.of_query(
        SCALE, torch.arange(51) * 20, torch.tensor(ratings.ravel()), torch.tensor(scores.ravel())
    )
    first = np.where(ratings >= 4, rankdata(-scores, axis=1), np.inf).min(axis=1)
    np.testing.assert_allclose(metric("mrr", 3).score(scored), np.where(first <= 3, 1 / first, 0), rtol=1e-12)
    np.testing.assert_allclose(metric("hit", 3).score(scored), first <= 3, atol=1e-12)


@pytest.mark.parametrize("name", PLAIN)
def test_large_tie_groups_keep_their_precision(name: str) -> None:
    """5,000 level partners, one of them relevant: its place is uniform."""
    ratings = [5.0] + [1.0] * 4999
    value = score_one(metric(name, 10), ratings, [0.0] * 5000)
    place = 10 / 5000
    harmonic = sum(1 / p for p in range(1, 11)) / 5000
    expected = {"precision": place / 10, "recall": place, "hit": place, "mrr": harmonic, "map": harmonic}
    if name in expected:
        assert value == pytest.approx(expected[name], rel=1e-9)
    else:
        gain = (lambda r: r) if name == "ndcg_linear" else (lambda r: 2**r - 1)
        discounts = [1 / math.log2(p + 1) for p in range(1, 11)]
        mean_gain = (gain(5) + 4999 * gain(1)) / 5000
        best = gain(5) + gain(1) * sum(discounts[1:])
        assert value == pytest.approx(mean_gain * sum(discounts) / best, rel=1e-9)


def test_tasks_are_independent_and_empty_ones_undefined() -> None:
    scored = Scored.of_query(
        SCALE,
        torch.tensor([0, 2, 2, 4]),
        torch.tensor([5.0, 1.0, 1.0, 5.0]),
        torch.tensor([2.0, 1.0, 2.0, 1.0]),
    )
    assert metric("mrr", 5).score(scored).nan_to_num(nan=-1).tolist() == [1.0, -1.0, 0.5]

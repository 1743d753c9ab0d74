"""Chance: seeded, the same for any batch, uniform, and no better than chance at ranking."""

import numpy as np
import pytest
import torch
from scipy import stats

from metarec.learning import Run
from metarec.plugins.algorithms.random import Random
from metarec.tasks import Query
from metarec.testing import AlgorithmConformance


class TestConformance(AlgorithmConformance):
    algorithm = Random


def predicted(split, tasks, seed=0):
    fitted = Random().fit(split.train, run=Run(seed=seed))
    return fitted.predict(fitted.adapt(tasks.support), tasks.query)


@pytest.fixture
def tasks(explicit):
    return next(cell.tasks for cell in explicit.cells if (cell.scenario, cell.support) == ("new-user", 4))


def everything(tasks):
    """Every task asked for every partner."""
    partners = tasks.query.partners
    return Query.full(len(tasks), partners, torch.arange(len(partners)))


def uniform(split, tasks, seed):
    """float64 [tasks, partners]: the scores of implicit feedback."""
    fitted = Random().fit(split.train, run=Run(seed=seed))
    return fitted.predict(
        fitted.adapt(tasks.support.to(dtype=torch.float64)), everything(tasks)
    ).mean.reshape(len(tasks), -1)


def test_the_seed_is_that_of_the_fit(explicit, tasks):
    one, same, other = (predicted(explicit, tasks, seed).mean for seed in (0, 0, 1))
    assert torch.equal(one, same) and not (one == other).any()


def test_scores_are_uniform_and_independent(implicit):
    tasks = next(cell.tasks for cell in implicit.cells if (cell.scenario, cell.support) == ("new-user", None))
    scores = torch.stack([uniform(implicit, tasks, seed) for seed in range(20)]).numpy()
    assert scores.min() > 0 and scores.max() < 1
    assert stats.kstest(scores.ravel(), "uniform").pvalue > 0.01
    for axis in range(3):  # neighbouring seeds, tasks and partners
        pairs = np.moveaxis(scores, axis, 0)
        correlation = np.corrcoef(pairs[:-1].ravel(), pairs[1:].ravel())[0, 1]
        assert abs(correlation) < 4 / pairs[1:].size ** 0.5


def test_explicit_guesses_have_the_mean_and_variance_of_the_ratings(explicit, frame):
    rating = frame(explicit.train)["rating"]
    guesses = np.concatenate(
        [predicted(explicit, cell.tasks, seed).mean.numpy() for seed in range(5) for cell in explicit.cells]
    )
    distinct = np.unique(guesses)
    assert stats.kstest((distinct - rating.mean()) / rating.std(ddof=0), "norm").pvalue > 0.01
    assert torch.allclose(
        predicted(explicit, explicit.cells[0].tasks).variance, torch.tensor(2 * rating.var(ddof=0)).float()
    )


def test_a_guess_is_apart_from_a_rating_by_as_much_as_its_variance_says(explicit, tasks):
    """The error of guessing at random is that of two independent draws."""
    errors = torch.stack([(predicted(explicit, tasks, seed).mean - tasks.rating) ** 2 for seed in range(200)])
    mean = float(explicit.train.rating.mean())
    expected = float(explicit.train.rating.var(correction=0)) + float(((tasks.rating - mean) ** 2).mean())
    assert errors.mean().item() == pytest.approx(expected, rel=0.05)


def test_ranking_is_at_chance(explicit, tasks):
    """The first is relevant as often as any; a relevant one stands before an irrelevant one half the time."""
    relevant = tasks.rating >= explicit.train.scale.relevant_from
    lists = relevant.split(tasks.query.counts.tolist())
    seeds, hits, auc = 200, [], []
    for seed in range(seeds):
        for score, wanted in zip(
            predicted(explicit, tasks, seed).mean.split(tasks.query.counts.tolist()), lists, strict=True
        ):
            hits.append(float(wanted[score.argmax()]))
            if wanted.any() and not wanted.all():
                auc.append(float((score[wanted][:, None] > score[~wanted]).double().mean()))
    chance = np.mean([float(wanted.double().mean()) for wanted in lists])
    assert np.mean(hits) == pytest.approx(chance, abs=4 * np.std(hits) / len(hits) ** 0.5)
    assert np.mean(auc) == pytest.approx(0.5, abs=4 * np.std(auc) / len(auc) ** 0.5)

"""Draws of a linear Gaussian head are draws of an exact posterior."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributions import Normal

from metarec.learning import Algorithm, SamplingLearner, Training
from metarec.tasks import Support
from metarec.testing.oracles.check import Check, distance, fitted, tasks_of
from metarec.testing.oracles.posterior import process

SMALL = {"size": 4, "rank": 3, "draws": 64, "training": Training(epochs=2)}
MANY = 20_000
WORLDS = 1000

L = TypeVar("L", bound=SamplingLearner)


def checks(algorithm: type[Algorithm]) -> Iterator[Check]:
    """Hold many draws to the Gaussian process of its features, and their ranks to those of draws from the model."""
    learner = fitted(algorithm, SMALL)
    assert isinstance(learner, SamplingLearner)
    with_many_draws(learner, MANY)
    for scenario in ("new-user", "new-item"):
        tasks = tasks_of(scenario)
        yield Check(f"log density of the support ({scenario})", _density_error(learner, tasks.support), 1e-10)
        found, expected = learner.predict(learner.adapt(tasks.support), tasks.query), process(learner, tasks)
        assert found.variance is not None and expected.variance is not None
        yield Check(f"mean of many draws ({scenario})", distance(found.mean, expected.mean), 0.02)
        error = distance(found.variance, expected.variance)
        yield Check(f"variance of many draws ({scenario})", error, 0.05)
        law = Normal(expected.mean, expected.variance.sqrt())
        density = -law.log_prob(tasks.rating).mean() - torch.tensor(learner.deviation_).log()
        error = abs(float(learner.loss(tasks).detach() - density))
        yield Check(f"loss nears the negative log density of the query ({scenario})", error, 0.02)
    with_many_draws(learner, 4000)
    yield Check("ranks of true heads among the draws are uniform", _rank_error(learner), 0.06)


def with_many_draws(learner: L, count: int) -> L:
    """It, with so many draws of the prior; the weights stay."""
    generator = torch.Generator().manual_seed(1)
    learner.draws = count
    learner.network_.points = torch.randn(count, learner.rank, generator=generator).double()
    return learner


@torch.no_grad()
def _density_error(learner: SamplingLearner, support: Support) -> float:
    """Of the log density of each task's support, at a few heads."""
    points = learner.points[:5]
    head, owner = learner.head(support.side), support.owner
    heads = head.prior_mean(support.entities).unsqueeze(1) + points @ torch.linalg.inv(head.prior_factor())
    features, noise = head.features(support.partners)
    mean = (heads[owner] * features[support.partner].unsqueeze(1)).sum(2)
    law = Normal(mean, noise[support.partner].sqrt().unsqueeze(1))
    each = law.log_prob(learner.standardised(support.rating).unsqueeze(1))
    expected = torch.zeros(len(support), 5, dtype=each.dtype).index_add(0, owner, each)
    return distance(learner.likelihood(support)(points), expected)


@torch.no_grad()
def _rank_error(learner: SamplingLearner) -> float:
    """Simulation-based calibration (Talts et al. 2018): greatest distance of the ranks' distribution from the uniform.

    Heads are drawn from the prior and ratings from the heads; where the draws are of the posterior, the share of them
    that lies below the true head is uniform.
    """
    tasks, generator = tasks_of("new-user"), torch.Generator().manual_seed(2)
    support = tasks.support.select(torch.arange(WORLDS) % len(tasks))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    head = learner.head(support.side)
    away = normal(WORLDS, learner.rank) @ torch.linalg.inv(head.prior_factor())
    truth = head.prior_mean(support.entities) + away
    features, noise = learner.features(support.side, support, support.partners)
    rating = (truth[support.owner] * features).sum(1) + noise.sqrt() * normal(len(noise))
    sample = learner.adapt(replace(support, rating=learner.rated(rating)))
    below = (sample.heads.sum(2) < truth.sum(1, keepdim=True)).double()
    rank = (sample.weight * below).sum(1).sort().values
    return float((rank - (torch.arange(WORLDS) + 0.5) / WORLDS).abs().max())

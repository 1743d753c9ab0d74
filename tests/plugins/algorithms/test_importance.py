"""Importance sampling against densities and losses written out; its posterior is held by `metarec.testing.oracles`."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

from metarec.evaluation import evaluate
from metarec.learning import Run, SamplingLearner, Training, TrainingWarning
from metarec.plugins.algorithms.importance import Importance
from metarec.plugins.metrics.rating import RootMeanSquaredError
from metarec.tasks import Support
from metarec.testing import AlgorithmConformance
from metarec.testing.oracles.check import tasks_of
from metarec.testing.oracles.sampling import with_many_draws
from metarec.testing.world import small_world

SMALL = {"size": 4, "rank": 3, "training": Training(epochs=2)}


class TestConformance(AlgorithmConformance):
    algorithm = Importance
    options = SMALL


def learner(**options: Any) -> Importance:
    made = Importance(**{**SMALL, **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)
        return made.fit(small_world().split.train, run=Run(dtype=torch.float64))


def exact_log_evidence(fitted: SamplingLearner, support: Support) -> torch.Tensor:
    """Of each support, as a multivariate normal density."""
    head, found = fitted.head(support.side), []
    with torch.no_grad():
        features, noise = head.features(support.partners)
        prior, covariance = head.prior_mean(support.entities), torch.linalg.inv(head.prior_precision())
    for task in range(len(support)):
        begin, end = support.offsets[task : task + 2].tolist()
        held = support.partner[begin:end]
        kernel = features[held] @ covariance @ features[held].T + torch.diag(noise[held])
        rating = fitted.standardised(support.rating[begin:end])
        law = torch.distributions.MultivariateNormal(features[held] @ prior[task], kernel)
        found.append(law.log_prob(rating) if end > begin else torch.zeros(()).double())
    return torch.stack(found)


def test_the_mean_weight_is_the_evidence():
    fitted, support = learner(), tasks_of("new-user").support
    with_many_draws(fitted, 50_000)
    found = fitted.diagnostics(fitted.adapt(support))["log_evidence"]
    assert torch.allclose(found, exact_log_evidence(fitted, support), atol=0.05)


def test_the_mean_of_the_evidence_is_below_it_and_rises_with_the_draws():
    """Burda et al. 2016, theorem 1."""
    fitted, support = learner(), tasks_of("new-user").support
    means = []
    for draws in (16, 256):
        generator = torch.Generator().manual_seed(0)
        found = []
        for _ in range(200):
            with_many_draws(fitted, draws)
            fitted.network_.points = torch.randn(draws, fitted.rank, generator=generator).double()
            found.append(fitted.diagnostics(fitted.adapt(support))["log_evidence"])
        means.append(torch.stack(found).mean(0).sum())
    assert means[0] < means[1] < exact_log_evidence(fitted, support).sum()


def test_without_weights_each_draw_takes_a_step_on_its_loss():
    fitted, support = learner(mode="seed", step=0.3), tasks_of("new-user").support
    draws = fitted.adapt(support).draws
    start = fitted.points.expand(len(support), -1, -1).clone().requires_grad_()
    loss = -fitted.likelihood(support)(start) / support.counts.clamp(min=1).unsqueeze(1)
    (gradient,) = torch.autograd.grad(loss.sum(), start)
    assert torch.allclose(draws.points, start.detach() - 0.3 * gradient, rtol=1e-12)
    assert torch.allclose(draws.log_weight.exp(), torch.full_like(draws.log_weight, 1 / fitted.draws))


def test_without_weights_the_loss_is_the_mean_of_the_draws_losses():
    fitted, tasks = learner(mode="seed"), tasks_of("new-user")
    with torch.no_grad():
        heads = fitted.adapt(tasks.support).heads
        features, noise = fitted.features("user", tasks.query, tasks.query.partners)
        mean = (heads[tasks.query.owner] * features.unsqueeze(1)).sum(2)
        law = torch.distributions.Normal(mean, noise.sqrt().unsqueeze(1))
        expected = -law.log_prob(fitted.standardised(tasks.rating).unsqueeze(1)).mean()
        assert fitted.loss(tasks).item() == pytest.approx(expected.item(), rel=1e-10)


def test_it_warns_where_few_draws_are_of_use():
    split = small_world().split
    many = replace(split.train, rating=100 * split.train.rating)
    options = {"size": 4, "rank": 8, "draws": 16, "training": Training(epochs=1, learning_rate=1e-6)}
    with pytest.warns(
        TrainingWarning, match=r"importance: for \d+% of some training tasks the draws are not"
    ):
        Importance(**options).fit(many)


def test_a_report_says_how_its_draws_went():
    split = small_world().split
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)
        cells = evaluate(Importance(**SMALL).fit(split.train), split, [RootMeanSquaredError()]).timings()
    assert all(set(cell["diagnostics"]) == set(Importance.figures) for cell in cells)
    assert all(1 <= cell["diagnostics"]["effective_draws"] <= 512 for cell in cells)

"""A mean field ends at the exact mean, has variances 1/Λᵢᵢ, and lacks of the evidence what it differs by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from metarec.learning import LinearHeadLearner, Posterior, Training
from metarec.tasks import Support, Tasks
from metarec.testing.oracles.check import Check, derivative_error, distance, fitted, tasks_of
from metarec.testing.oracles.posterior import process, process_density

SMALL: dict[str, Any] = {"size": 4, "rank": 3, "training": Training(epochs=2)}
MANY = {"inner_steps": 200}


def checks(algorithm: type[LinearHeadLearner]) -> Iterator[Check]:
    """Hold many steps to the optimum, and the loss after few to the evidence."""
    learner = fitted(algorithm, SMALL | MANY)
    for scenario in ("new-user", "new-item", "new-both"):
        tasks = tasks_of(scenario)
        found, expected = learner.predict(learner.adapt(tasks.support), tasks.query), process(learner, tasks)
        assert found.variance is not None
        error = distance(found.mean, expected.mean)
        yield Check(f"mean of the Gaussian process after many steps ({scenario})", error, 1e-9)
        error = distance(found.variance, _variance(learner, tasks))
        yield Check(f"variance by the diagonal of the precision ({scenario})", error, 1e-9)
    for steps in (1, 200):
        learner = fitted(algorithm, SMALL | {"inner_steps": steps})
        tasks = tasks_of("new-user")
        tasks = replace(tasks, support=tasks.support.first(0))
        gap = process_density(learner, tasks) - _divergence(learner, tasks.answers())
        expected_loss = -gap.sum() / tasks.rating.numel()
        error = distance(learner.loss(tasks).detach(), expected_loss)
        yield Check(f"bound lacks of the evidence the divergence from the posterior ({steps})", error, 1e-9)
    learner = fitted(algorithm, SMALL | {"inner_steps": 2})
    yield Check("gradient is the slope of the loss", derivative_error(learner, tasks_of("new-user")), 1e-6)


def _exact(learner: LinearHeadLearner, support: Support) -> Iterator[tuple[Tensor, Tensor]]:
    """Mean and precision of the exact posterior of each θ."""
    head = learner.head(support.side)
    features, noise = head.features(support.partners)
    prior, before = head.prior_mean(support.entities), head.prior_precision()
    for task in range(len(support)):
        mine = support.owner == task
        held, weight = features[support.partner[mine]], 1 / noise[support.partner[mine]]
        precision = before + held.T @ torch.diag(weight) @ held
        target = learner.standardised(support.rating[mine])
        yield torch.linalg.solve(precision, before @ prior[task] + held.T @ (weight * target)), precision


@torch.no_grad()
def _variance(learner: LinearHeadLearner, tasks: Tasks) -> Tensor:
    """``σ² + Σᵢ (R⁻¹φ)ᵢ² / Λᵢᵢ`` of each query pair, with Λ the precision of ``Rᵀθ``."""
    head = learner.head(tasks.support.side)
    back = torch.linalg.inv(head.prior_factor())
    features, noise = head.features(tasks.query.partners)
    white, variances = features @ back.T, []
    for task, (_, precision) in enumerate(_exact(learner, tasks.support)):
        asked = tasks.query.partner[tasks.query.owner == task]
        own = (back @ precision @ back.T).diagonal()
        variances.append((white[asked].square() / own).sum(1) + noise[asked])
    return learner.deviation_**2 * torch.cat(variances)


@torch.no_grad()
def _divergence(learner: LinearHeadLearner, support: Support) -> Tensor:
    """KL from each task's Gaussian to the exact posterior, float [T]."""
    found = learner.adapt(support)
    assert isinstance(found, Posterior)
    each = []
    for task, (mean, precision) in enumerate(_exact(learner, support)):
        cholesky = found.cholesky[task]
        own = MultivariateNormal(found.mean[task], precision_matrix=cholesky @ cholesky.T)
        divergence: Tensor = kl_divergence(own, MultivariateNormal(mean, precision_matrix=precision))
        each.append(divergence)
    return torch.stack(each)

"""A Gaussian start and steps on a quadratic, one task at a time by autograd: where its centre and its axes end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import Bernoulli, MultivariateNormal, Normal, kl_divergence

from metarec.learning import LinearHeadLearner, Training
from metarec.tasks import Support, Tasks
from metarec.testing.oracles.check import Check, derivative_error, distance, fitted, tasks_of

SMALL: dict[str, Any] = {
    "size": 4,
    "rank": 3,
    "inner_steps": 4,
    "prior_ratings": 2.0,
    "training": Training(epochs=2),
}

STEP, SHIFT, SHIFT_OF_QUERY = range(3)


def checks(algorithm: type[LinearHeadLearner]) -> Iterator[Check]:
    """Hold means, variances and the bound to steps by autograd from the centre and the ends of the axes."""
    learner = fitted(algorithm, SMALL)
    for scenario in ("new-user", "new-item", "new-both"):
        tasks = tasks_of(scenario)
        found = learner.predict(learner.adapt(tasks.support), tasks.query)
        mean, variance = _prediction(learner, tasks)
        assert found.variance is not None
        yield Check(f"mean of the pushed start ({scenario})", distance(found.mean, mean), 1e-10)
        yield Check(f"variance of the pushed start ({scenario})", distance(found.variance, variance), 1e-10)
    tasks = tasks_of("new-user")
    error = distance(learner.loss(tasks).detach(), _loss(learner, tasks))
    yield Check("loss is the bound written out", error, 1e-10)
    yield Check("gradient is the slope of the loss", derivative_error(learner, tasks), 1e-6)


def log_density(learner: LinearHeadLearner, support: Support, task: int) -> Callable[[Tensor], Tensor]:
    """``log p(S|z)`` of one task as a function of z (float [r])."""
    head, mine = learner.head(support.side), support.owner == task
    with torch.no_grad():
        features, noise = (part[support.partner[mine]] for part in head.features(support.partners))
        prior, back = head.prior_mean(support.entities)[task], torch.linalg.inv(head.prior_factor())
    rating = learner.standardised(support.rating[mine])

    def density(point: Tensor) -> Tensor:
        output = features @ (prior + back.T @ point)
        law = Bernoulli(logits=output) if learner.implicit_ else Normal(output, noise.sqrt())
        total: Tensor = law.log_prob(rating).sum()  # type: ignore[no-untyped-call]
        return total

    return density


def _slope(density: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    point = point.detach().requires_grad_()
    return torch.autograd.grad(density(point), point)[0]


def _rate(learner: LinearHeadLearner, support: Support, task: int, which: int) -> Tensor:
    """A learnt rate, over the ratings of a task and those that the start weighs."""
    rate: Tensor = cast(Any, learner.head(support.side)).rates()[which].detach()
    return rate / (int(support.counts[task]) + float(SMALL["prior_ratings"]))


def _start(learner: LinearHeadLearner, support: Support, task: int, which: int) -> Tensor:
    slope = _slope(log_density(learner, support, task), torch.zeros(SMALL["rank"], dtype=torch.float64))
    return _rate(learner, support, task, which) * slope


def _pushed(learner: LinearHeadLearner, support: Support, task: int, start: Tensor) -> tuple[Tensor, Tensor]:
    """Where the steps lead from `start`, and by how much further from one along each axis, as columns."""
    density, rate = log_density(learner, support, task), _rate(learner, support, task, STEP)
    ends = []
    for point in (start, *(start + axis for axis in torch.eye(len(start), dtype=start.dtype))):
        for _ in range(SMALL["inner_steps"]):
            point = point + rate * _slope(density, point)
        ends.append(point.detach())
    return ends[0], torch.stack([end - ends[0] for end in ends[1:]], 1)


def _prediction(learner: LinearHeadLearner, tasks: Tasks) -> tuple[Tensor, Tensor]:
    support, query = tasks.support, tasks.query
    head = learner.head(support.side)
    with torch.no_grad():
        features, noise = head.features(query.partners)
        prior, back = head.prior_mean(support.entities), torch.linalg.inv(head.prior_factor())
    means, variances = [], []
    for task in range(len(tasks)):
        mean, factor = _pushed(learner, support, task, _start(learner, support, task, SHIFT))
        asked = query.partner[query.owner == task]
        means.append(features[asked] @ (prior[task] + back.T @ mean))
        spread = features[asked] @ back.T @ factor
        variances.append((spread @ spread.T).diagonal() + noise[asked])
    return learner.rated(torch.cat(means)), learner.deviation_**2 * torch.cat(variances)


def _loss(learner: LinearHeadLearner, tasks: Tasks) -> Tensor:
    """With the expectation of a quadratic by its values at ``mean ± √r`` times the axes, which is exact."""
    support, answers = tasks.support, tasks.answers()
    rates = cast(Any, learner.head(support.side)).rates
    deviation = (rates.log_variance.detach() / 2).exp()
    total = torch.zeros((), dtype=torch.float64)
    for task in range(len(tasks)):
        start = _start(learner, answers, task, SHIFT_OF_QUERY)
        mean, factor = _pushed(learner, support, task, start)
        away = len(mean) ** 0.5 * (factor * deviation).T
        density = log_density(learner, answers, task)
        ends = [density(mean + sign * axis) for axis in away for sign in (1, -1)]
        before = MultivariateNormal(_start(learner, support, task, SHIFT), torch.eye(3).double())
        divergence = kl_divergence(MultivariateNormal(start, torch.diag(deviation.square())), before)
        total = total + torch.stack(ends).mean() - divergence
    return -total.detach() / tasks.rating.numel()

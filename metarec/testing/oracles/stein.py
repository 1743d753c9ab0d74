"""Stein variational gradient steps, particle by particle, and the moments at which they stand still."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from metarec.learning import SamplingLearner, Training
from metarec.testing.oracles.check import Check, derivative_error, distance, fitted, tasks_of
from metarec.testing.oracles.posterior import process

SMALL: dict[str, Any] = {"size": 4, "rank": 3, "draws": 16, "training": Training(epochs=1)}
STEP = 0.5


def checks(algorithm: type[SamplingLearner]) -> Iterator[Check]:
    """Hold few steps to sums over a kernel, and many to the exact posterior with no more than 16 particles."""
    learner = fitted(algorithm, SMALL)
    support = tasks_of("new-user").support
    start, after = (_stepped(learner, steps).adapt(support).draws.points for steps in (0, 3))
    moments = torch.cat([start.mean(1, keepdim=True), start.mT @ start / start.shape[1]], 1)
    expected = torch.cat([torch.zeros(1, 3), torch.eye(3)]).double().expand_as(moments)
    yield Check("particles start with the prior's moments", distance(moments, expected), 1e-12)
    likelihood = learner.likelihood(support)
    written = _written_out(start, likelihood.precision.detach(), likelihood.shift.detach(), 3)
    yield Check("steps written out particle by particle", distance(after, written), 1e-10)
    error = derivative_error(_stepped(learner, 2), tasks_of("new-user"))
    yield Check("gradient is the slope of the loss", error, 1e-6)
    _stepped(learner, 60)
    for scenario in ("new-user", "new-item", "new-both"):
        tasks = tasks_of(scenario)
        found, exact = learner.predict(learner.adapt(tasks.support), tasks.query), process(learner, tasks)
        assert found.variance is not None and exact.variance is not None
        yield Check(f"mean of few particles ({scenario})", distance(found.mean, exact.mean), 1e-10)
        yield Check(
            f"variance of few particles ({scenario})", distance(found.variance, exact.variance), 1e-10
        )


def _stepped(learner: SamplingLearner, steps: int) -> SamplingLearner:
    """It, with so many steps."""
    learner.inner_steps = steps  # type: ignore[attr-defined]
    return learner


def _written_out(start: Tensor, precision: Tensor, shift: Tensor, steps: int) -> Tensor:
    """Particles of each task after steps by sums over the kernel, its gradient by autograd."""
    ends = []
    for own, curvature, pull in zip(start, precision, shift, strict=True):
        metric, points = torch.linalg.inv(curvature + torch.eye(len(pull))), own
        for _ in range(steps):
            inverse, mean = torch.linalg.inv(points.T.cov(correction=0)), points.mean(0)
            moving = points.clone().requires_grad_()
            log_density = (
                moving @ pull - ((moving @ curvature) * moving).sum(1) / 2 - moving.square().sum(1) / 2
            )
            (slope,) = torch.autograd.grad(log_density.sum(), moving)
            ways = []
            for point in points:
                kernel = 1 + (moving - mean) @ inverse @ (point - mean)
                (apart,) = torch.autograd.grad(kernel.sum(), moving)
                ways.append((kernel.detach().unsqueeze(1) * slope + apart).mean(0))
            points = points + STEP * torch.stack(ways) @ metric
        ends.append(points)
    return torch.stack(ends)

"""What an oracle says, and what all of them need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from metarec.learning import Algorithm, NeuralAlgorithm, Run
from metarec.options import parameters
from metarec.tasks import Support, Tasks
from metarec.testing.world import small_world

A = TypeVar("A", bound=Algorithm)


@dataclass(frozen=True)
class Check:
    """How far an algorithm is from an answer that is known without it.

    Parameters
    ----------
    name : str
        What must hold.
    error : float
        How far from it the algorithm is.
    tolerance : float
        How far it may be.
    """

    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is a number within the tolerance."""
        return self.error <= self.tolerance


def distance(found: Tensor, expected: Tensor) -> float:
    """Greatest difference of two tensors, in units of the greatest expected value.

    It is infinite where shapes differ, and where there is nothing to compare.
    """
    if found.shape != expected.shape or not expected.numel():
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-3))


def fitted(algorithm: type[A], options: Mapping[str, Any], *, implicit: bool = False) -> A:
    """It, fitted on the small world in float64 with those of the options that it has."""
    train = small_world(implicit=implicit).split.train
    return made(algorithm, options).fit(train, run=Run(dtype=torch.float64))


def made(algorithm: type[A], options: Mapping[str, Any]) -> A:
    """It, not yet fitted, with those of the options that it has."""
    known = parameters(algorithm)
    return algorithm(**{name: value for name, value in options.items() if name in known})


def tasks_of(scenario: str, *, implicit: bool = False) -> Tasks:
    """Tasks of the small world in float64."""
    tasks = small_world(implicit=implicit).tasks(scenario)
    return replace(
        tasks,
        support=tasks.support.to(dtype=torch.float64),
        query=tasks.query.to(dtype=torch.float64),
        rating=tasks.rating.double(),
    )


def derivative_error(learner: NeuralAlgorithm, tasks: Tasks) -> float:
    """How far the derivative of the loss along a random way in the weights is from a difference of losses."""
    weights, generator = list(learner.network_.parameters()), torch.Generator().manual_seed(0)
    way = [torch.randn(weight.shape, generator=generator, dtype=weight.dtype) for weight in weights]
    gradients = torch.autograd.grad(learner.loss(tasks), weights, materialize_grads=True)
    found = sum((gradient * part).sum() for gradient, part in zip(gradients, way, strict=True))
    losses, step = [], 1e-6  # a longer one meets the kinks of rectifiers
    for sign in (1, -2):
        for weight, part in zip(weights, way, strict=True):
            weight.data += sign * step * part
        losses.append(learner.loss(tasks).detach())
    for weight, part in zip(weights, way, strict=True):
        weight.data += step * part
    return distance(torch.as_tensor(found), (losses[0] - losses[1]) / (2 * step))


def repeated(support: Support, times: int) -> Support:
    """Every rating of the support so many times."""
    entry = torch.arange(support.partner.numel()).repeat_interleave(times)
    return replace(
        support,
        offsets=support.offsets * times,
        partner=support.partner[entry],
        rating=support.rating[entry],
    )

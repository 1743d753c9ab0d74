"""``gaussian_posterior`` beside a loop over tasks in NumPy and batched products and factorisations in torch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from benchmarks import roofline
from benchmarks.ops import Case
from benchmarks.timing import CPU, Call
from metarec.ops import gaussian_posterior

TASKS, RATINGS, RANK = 1000, 50, 32
TASKS_OF_A_GPU = 64_000
"""So many take a GPU longer than it takes to start their kernels."""


def cases(device: torch.device = CPU) -> Iterator[Case]:
    """Many users at once, and one who has just come."""
    for tasks in (TASKS,) if device.type == "cpu" else (TASKS, TASKS_OF_A_GPU):
        given = arguments(tasks, device)
        yield Case(
            f"{tasks:,} tasks × {RATINGS} ratings × rank {RANK}",
            ours=partial(gaussian_posterior, *given),
            work=roofline.gaussian_posterior(tasks, tasks * RATINGS, RANK),
            peers=peers(given),
            least_ratio={"NumPy loop": 20, "torch batched": 4},
        )
    given = arguments(1, device)
    yield Case(
        f"one new user of {RATINGS} ratings, inside the op",
        ours=partial(torch.ops.metarec.gaussian_posterior.default, *given),
        work=roofline.gaussian_posterior(1, RATINGS, RANK),
        most_ms=0.03,
    )
    yield Case(
        f"one new user of {RATINGS} ratings, from Python",
        ours=partial(gaussian_posterior, *given),
        work=roofline.gaussian_posterior(1, RATINGS, RANK),
        peers=peers(given),
    )


def arguments(tasks: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Draw observations, and a prior that all share."""
    generator, count = torch.Generator().manual_seed(0), tasks * RATINGS
    drawn = (
        torch.randn(count, RANK, generator=generator),
        torch.randn(count, generator=generator),
        torch.rand(count, generator=generator) + 0.5,
        torch.arange(0, count + 1, RATINGS),
        torch.zeros(RANK),
        torch.eye(RANK),
    )
    return tuple(tensor.to(device) for tensor in drawn)


def peers(given: tuple[torch.Tensor, ...]) -> dict[str, Call]:
    """Give those that run on the device."""
    batched = {"torch batched": partial(torch_batched, *given)}
    return (
        {"NumPy loop": partial(numpy_loop, *given), **batched} if given[0].device.type == "cpu" else batched
    )


def numpy_loop(
    features: torch.Tensor,
    targets: torch.Tensor,
    precision: torch.Tensor,
    offsets: torch.Tensor,
    prior_mean: torch.Tensor,
    prior_precision: torch.Tensor,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and Cholesky factor of each task, as one writes it first; without the evidence."""
    f, y, w, ends, m, p = (
        tensor.numpy() for tensor in (features, targets, precision, offsets, prior_mean, prior_precision)
    )
    tasks, rank = len(ends) - 1, f.shape[1]
    means, factors = np.empty((tasks, rank), f.dtype), np.empty((tasks, rank, rank), f.dtype)
    shift = p @ m
    for task in range(tasks):
        rows = slice(ends[task], ends[task + 1])
        weighted = f[rows] * w[rows, None]
        total = p + weighted.T @ f[rows]
        means[task] = np.linalg.solve(total, shift + weighted.T @ y[rows])
        factors[task] = np.linalg.cholesky(total)
    return means, factors


def torch_batched(
    features: torch.Tensor,
    targets: torch.Tensor,
    precision: torch.Tensor,
    _: torch.Tensor,
    prior_mean: torch.Tensor,
    prior_precision: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and Cholesky factor of tasks that are all of one length; without the evidence."""
    f = features.view(-1, RATINGS, RANK)
    weighted = (f * precision.view(-1, RATINGS, 1)).mT
    total = torch.baddbmm(prior_precision, weighted, f)
    shift = weighted @ targets.view(-1, RATINGS, 1) + (prior_precision @ prior_mean)[:, None]
    factor = torch.linalg.cholesky(total)
    return torch.cholesky_solve(shift, factor)[..., 0], factor

"""``gaussian_posterior`` beside a loop over tasks in NumPy and batched products and factorisations in torch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks import roofline
from benchmarks.ops import Case
from metarec.ops import gaussian_posterior

TASKS, RATINGS, RANK = 1000, 50, 32


def cases() -> Iterator[Case]:
    """Many users at once, and one who has just come."""
    generator = torch.Generator().manual_seed(0)
    f = torch.randn(TASKS * RATINGS, RANK, generator=generator)
    y = torch.randn(TASKS * RATINGS, generator=generator)
    w = torch.rand(TASKS * RATINGS, generator=generator) + 0.5
    offsets = torch.arange(0, TASKS * RATINGS + 1, RATINGS)
    m, p = torch.zeros(RANK), torch.eye(RANK)
    yield Case(
        f"{TASKS:,} tasks × {RATINGS} ratings × rank {RANK}",
        ours=lambda: gaussian_posterior(f, y, w, offsets, m, p),
        work=roofline.gaussian_posterior(TASKS, TASKS * RATINGS, RANK),
        peers={
            "NumPy loop": lambda: numpy_loop(f, y, w, offsets, m, p),
            "torch batched": lambda: torch_batched(f, y, w, m, p),
        },
        least_ratio={"NumPy loop": 20, "torch batched": 4},
    )
    inside = torch.ops.metarec.gaussian_posterior.default
    f1, y1, w1, user = f[:RATINGS], y[:RATINGS], w[:RATINGS], offsets[:2]
    yield Case(
        f"one new user of {RATINGS} ratings, inside the op",
        ours=lambda: inside(f1, y1, w1, user, m, p),
        work=roofline.gaussian_posterior(1, RATINGS, RANK),
        most_ms=0.03,
    )
    yield Case(
        f"one new user of {RATINGS} ratings, from Python",
        ours=lambda: gaussian_posterior(f1, y1, w1, user, m, p),
        work=roofline.gaussian_posterior(1, RATINGS, RANK),
        peers={
            "NumPy loop": lambda: numpy_loop(f1, y1, w1, user, m, p),
            "torch batched": lambda: torch_batched(f1, y1, w1, m, p),
        },
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

"""Samples of ``gaussian_posterior`` with its gradients, and of ``gaussian_update``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, product

import torch
from torch import Tensor

from metarec.ops import gaussian_posterior, gaussian_update, reference
from metarec.testing.ops.sample import Sample, double

TOLERANCE = {torch.float32: 1e-4, torch.float64: 5e-12}
GRADIENT_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}
UPDATE_TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-11}

SHAPES: list[tuple[list[int], int]] = [
    ([], 4),
    ([0], 3),
    ([1], 1),
    ([0, 0, 5, 0], 2),
    ([3, 0, 1, 17, 64, 65, 2], 5),
    ([50] * 9, 8),
    ([700, 1, 0], 16),
    ([20, 33], 17),
    ([50, 49, 3], 31),
    ([50] * 4, 32),
    ([10, 200], 33),
    ([64, 5], 64),
    ([3, 130], 127),
    ([90], 128),
    ([4, 0], 0),
]
WITH_GRADIENTS: list[tuple[list[int], int]] = [
    ([0, 0, 5, 0], 2),
    ([3, 0, 1, 17, 64, 65, 2], 5),
    ([5] * 130, 9),
    ([70], 33),
]
TYPES = (torch.float32, torch.float64)
FLOATING = ("features", "targets", "precision", "prior_mean", "prior_precision")


def samples() -> Iterator[Sample]:
    """Posteriors, their gradients, and updates."""
    return chain(posteriors(), gradients(), updates())


def posteriors() -> Iterator[Posteriors]:
    """Tasks and ranks of all sizes, with priors of their own and shared ones."""
    for (counts, rank), own_mean, own_precision, dtype in product(
        SHAPES, (False, True), (False, True), TYPES
    ):
        yield Posteriors(counts, rank, own_mean, own_precision, dtype)


def gradients() -> Iterator[Gradients]:
    """Ranks of each way to compute, with priors of their own and shared ones."""
    for (counts, rank), own, dtype in product(WITH_GRADIENTS, (False, True), TYPES):
        yield Gradients(counts, rank, own, dtype)


def updates() -> Iterator[Updates]:
    """Observations in some orders."""
    for rank, dtype, order in product((1, 4, 33), TYPES, range(3)):
        yield Updates(rank, dtype, order)


def problem(
    counts: Sequence[int],
    rank: int,
    dtype: torch.dtype = torch.float64,
    own_mean: bool = False,
    own_precision: bool = False,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Observations of tasks, one of them of precision zero, and their prior."""
    generator = torch.Generator().manual_seed(seed)
    tasks, total = len(counts), sum(counts)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    root = normal(tasks, rank, rank + 2) if own_precision else normal(rank, rank + 2)
    prior_precision = root @ root.mT / max(rank, 1) + torch.eye(rank, dtype=torch.float64)
    prior_mean = normal(tasks, rank) if own_mean else normal(rank)
    weights = torch.rand(total, generator=generator, dtype=torch.float64) + 0.25
    if total > 2:
        weights[total // 2] = 0
    offsets = torch.tensor([0, *accumulate(counts)])
    floating = (normal(total, rank), normal(total), weights, prior_mean, prior_precision)
    features, targets, weights, prior_mean, prior_precision = (tensor.to(dtype) for tensor in floating)
    return features, targets, weights, offsets, prior_mean, prior_precision


@dataclass(frozen=True)
class Posteriors(Sample):
    """Means, factors and evidence, beside the reference."""

    counts: list[int]
    rank: int
    own_mean: bool
    own_precision: bool
    dtype: torch.dtype

    def arguments(self) -> list[Tensor]:
        return list(problem(self.counts, self.rank, self.dtype, self.own_mean, self.own_precision))

    def call(self, *arguments: Tensor) -> dict[str, Tensor]:
        features, targets, weights, offsets, mean, precision = arguments
        return gaussian_posterior(features, targets, weights, offsets, mean, precision)._asdict()

    def expected(self, *arguments: Tensor) -> dict[str, Tensor]:
        features, targets, weights, offsets, mean, precision = double(arguments)
        found = reference.gaussian_posterior(features, targets, weights, offsets, mean, precision)
        return dict(zip(("mean", "cholesky", "log_evidence"), found, strict=True))

    def tolerance(self, name: str) -> float:
        return TOLERANCE[self.dtype]


@dataclass(frozen=True)
class Gradients(Sample):
    """Gradients of all that is floating, beside those of torch through the reference."""

    counts: list[int]
    rank: int
    own: bool
    dtype: torch.dtype

    def arguments(self) -> list[Tensor]:
        generator, tasks = torch.Generator().manual_seed(7), len(self.counts)
        weights = (
            torch.randn(*shape, generator=generator, dtype=torch.float64).to(self.dtype)
            for shape in ((tasks, self.rank), (tasks, self.rank, self.rank), (tasks,))
        )
        return [*problem(self.counts, self.rank, self.dtype, self.own, self.own), *weights]

    def call(self, *arguments: Tensor) -> dict[str, Tensor]:
        leaves = _leaves(arguments[:6])
        features, targets, weights, offsets, mean, precision = leaves
        found = gaussian_posterior(features, targets, weights, offsets, mean, precision)
        return _gradients(leaves, found, arguments[6:])

    def expected(self, *arguments: Tensor) -> dict[str, Tensor]:
        doubles = double(arguments)
        leaves = _leaves(doubles[:6])
        features, targets, weights, offsets, mean, precision = leaves
        found = reference.gaussian_posterior(features, targets, weights, offsets, mean, precision)
        gradients = _gradients(leaves, found, doubles[6:])
        of_prior = gradients["prior_precision"]
        return {**gradients, "prior_precision": (of_prior + of_prior.mT) / 2}

    def tolerance(self, name: str) -> float:
        return GRADIENT_TOLERANCE[self.dtype]


def _leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in tensors]


def _gradients(
    leaves: Sequence[Tensor], results: Sequence[Tensor], weights: Sequence[Tensor]
) -> dict[str, Tensor]:
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return dict(zip(FLOATING, torch.autograd.grad(results, wanted, weights), strict=True))


@dataclass(frozen=True)
class Updates(Sample):
    """Nine observations, one by one in some order, and the last taken away again, beside the reference of them all."""

    rank: int
    dtype: torch.dtype
    order: int

    def arguments(self) -> list[Tensor]:
        features, targets, weights, _, mean, precision = problem([9], self.rank, self.dtype)
        order = torch.randperm(9, generator=torch.Generator().manual_seed(self.order))
        root = torch.linalg.cholesky(precision)
        return [features[order], targets[order], weights[order], mean, precision, root]

    def call(self, *arguments: Tensor) -> dict[str, Tensor]:
        features, targets, weights, mean, _, root = arguments
        state = mean[None], root[None]
        for observation in range(9):
            own = slice(observation, observation + 1)
            state = gaussian_update(*state, features[own], targets[own], weights[own])
        return _before_and_after(state, gaussian_update(*state, features[8:], targets[8:], -weights[8:]))

    def expected(self, *arguments: Tensor) -> dict[str, Tensor]:
        features, targets, weights, mean, precision, _ = double(arguments)

        def batch(count: int) -> tuple[Tensor, Tensor]:
            observed = features[:count], targets[:count], weights[:count], torch.tensor([0, count])
            return reference.gaussian_posterior(*observed, mean, precision)[:2]

        return _before_and_after(batch(9), batch(8))

    def tolerance(self, name: str) -> float:
        return UPDATE_TOLERANCE[self.dtype] * (10 if "without" in name else 1)


def _before_and_after(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    names = "mean", "cholesky", "mean without the last", "cholesky without the last"
    return dict(zip(names, (*before, *after), strict=True))

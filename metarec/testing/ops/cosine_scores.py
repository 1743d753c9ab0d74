"""Samples of ``cosine_scores`` with its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from metarec.ops import cosine_scores, reference
from metarec.testing.ops.sample import Sample, double

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13, torch.bfloat16: 8e-3}

SHAPES = [
    (3, 4, 5, 0),
    (1, 1, 1, 1),
    (0, 2, 3, 0),
    (5, 3, 0, 7),
    (7, 2, 3, 40),
    (50, 40, 16, 300),
    (40, 60, 33, 1000),
    (300, 20, 64, 5000),
    (30, 30, 65, 700),
    (9, 1000, 128, 500),
    (5, 6, 200, 40),
    (20000, 3, 7, 40000),
]


def samples() -> Iterator[Sample]:
    """Tables and pairs of all sizes, both kinds of gradient."""
    for shape in SHAPES:
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            yield Scores(*shape, dtype, torch.int64, sparse_grad=False)
            yield Scores(*shape, dtype, torch.int32, sparse_grad=True)


def problem(
    left: int,
    right: int,
    dim: int,
    pairs: int,
    dtype: torch.dtype = torch.float64,
    index: torch.dtype = torch.int64,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two tables and pairs of their rows, a quarter of them on row 0 of the second."""
    generator = torch.Generator().manual_seed(seed)
    tables = [
        torch.randn(count, dim, generator=generator, dtype=torch.float64).to(dtype) for count in (left, right)
    ]
    left_rows = torch.randint(max(left, 1), (pairs,), generator=generator)
    right_rows = torch.randint(max(right, 1), (pairs,), generator=generator)
    right_rows[torch.rand(pairs, generator=generator) < 0.25] = 0
    return tables[0], tables[1], left_rows.to(index), right_rows.to(index)


def gradient_of_scores(pairs: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Gradient of something in the scores."""
    return torch.randn(pairs, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(dtype)


@dataclass(frozen=True)
class Scores(Sample):
    """Scores and the gradients of both tables, beside the reference and torch's cosine similarity."""

    left: int
    right: int
    dim: int
    pairs: int
    dtype: torch.dtype
    index: torch.dtype
    sparse_grad: bool

    @property
    def waits(self) -> bool:
        return self.sparse_grad

    def arguments(self) -> list[Tensor]:
        tensors = problem(self.left, self.right, self.dim, self.pairs, self.dtype, self.index)
        return [*tensors, gradient_of_scores(self.pairs, reference.arithmetic_type(self.dtype))]

    def call(self, *arguments: Tensor) -> dict[str, Tensor]:
        left, right, left_rows, right_rows, gradient = arguments
        tables = left.detach().requires_grad_(), right.detach().requires_grad_()
        scores = cosine_scores(*tables, left_rows, right_rows, sparse_grad=self.sparse_grad)
        gradients = torch.autograd.grad(scores, tables, gradient)
        return _named(scores.detach(), *(found.to_dense() for found in gradients))

    def expected(self, *arguments: Tensor) -> dict[str, Tensor]:
        left, right, left_rows, right_rows, gradient = double(arguments)
        scores, _ = reference.cosine_scores(left, right, left_rows, right_rows, False)
        tables = left.requires_grad_(), right.requires_grad_()
        by_torch = functional.cosine_similarity(left[left_rows.long()], right[right_rows.long()])
        return _named(scores, *torch.autograd.grad(by_torch, tables, gradient))

    def tolerance(self, name: str) -> float:
        return TOLERANCE[reference.arithmetic_type(self.dtype) if name == "scores" else self.dtype]


def _named(scores: Tensor, left: Tensor, right: Tensor) -> dict[str, Tensor]:
    return {"scores": scores, "gradient of left": left, "gradient of right": right}

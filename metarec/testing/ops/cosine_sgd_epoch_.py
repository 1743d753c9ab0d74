"""Samples of ``cosine_sgd_epoch_``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from metarec.ops import cosine_sgd_epoch_, reference
from metarec.testing.ops.sample import Sample, double

Similarity = Literal["cosine", "dot"]
Loss = Literal["squared", "logistic"]

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}
KINDS: list[tuple[Similarity, Loss]] = [
    ("cosine", "squared"),
    ("cosine", "logistic"),
    ("dot", "squared"),
    ("dot", "logistic"),
]

SHAPES = [
    (3, 4, 5, 0),
    (1, 1, 1, 1),
    (4, 3, 0, 20),
    (7, 5, 3, 40),
    (30, 20, 33, 200),
    (9, 14, 16, 150),
    (14, 9, 32, 150),
    (25, 40, 64, 300),
    (12, 9, 70, 100),
    (60, 50, 4, 2100),
]

PARAMETERS = ("users", "items", "user_biases", "item_biases", "head")


def samples() -> Iterator[Sample]:
    """Tables and ratings of all sizes, each similarity with each loss."""
    for shape, (similarity, loss), dtype in product(SHAPES, KINDS, (torch.float32, torch.float64)):
        yield Epoch(*shape, similarity, loss, dtype)


def problem(
    users: int,
    items: int,
    dim: int,
    ratings: int,
    dtype: torch.dtype = torch.float64,
    index: torch.dtype = torch.int32,
    seed: int = 0,
) -> tuple[Tensor, ...]:
    """Parameters and ratings from 0 to 1, a third of them of item 0."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    parameters = (
        normal(users, dim) / max(dim, 1) ** 0.5,
        normal(items, dim) / max(dim, 1) ** 0.5,
        0.3 * normal(users),
        0.3 * normal(items),
        torch.tensor([0.8, 0.3], dtype=dtype),
    )
    user = torch.randint(max(users, 1), (ratings,), generator=generator)
    item = torch.randint(max(items, 1), (ratings,), generator=generator)
    item[torch.rand(ratings, generator=generator) < 0.33] = 0
    rating = torch.rand(ratings, generator=generator, dtype=torch.float64).to(dtype)
    return *parameters, user.to(index), item.to(index), rating


@dataclass(frozen=True)
class Epoch(Sample):
    """The loss and the parameters after an epoch, beside the reference."""

    users: int
    items: int
    dim: int
    ratings: int
    similarity: Similarity
    loss: Loss
    dtype: torch.dtype

    def arguments(self) -> list[Tensor]:
        index = torch.int64 if self.dim % 2 else torch.int32
        return list(problem(self.users, self.items, self.dim, self.ratings, self.dtype, index))

    def call(self, *arguments: Tensor) -> dict[str, Tensor]:
        parameters = [parameter.clone() for parameter in arguments[:5]]
        users, items, user_biases, item_biases, head = parameters
        loss = cosine_sgd_epoch_(
            users, items, user_biases, item_biases, head, *arguments[5:],
            lr=0.05, l2=0.1, similarity=self.similarity, loss=self.loss, seed=3, head_lr=0.02,
        )  # fmt: skip
        return {"loss": loss, **dict(zip(PARAMETERS, parameters, strict=True))}

    def expected(self, *arguments: Tensor) -> dict[str, Tensor]:
        doubles = double(arguments)
        kind = self.similarity == "cosine", self.loss == "logistic"
        loss = reference.cosine_sgd_epoch_(*doubles, 0.05, 0.1, *kind, 3, 0.02)  # type: ignore[call-arg, arg-type]
        return {"loss": loss, **dict(zip(PARAMETERS, doubles, strict=False))}

    def tolerance(self, name: str) -> float:
        return TOLERANCE[self.dtype]

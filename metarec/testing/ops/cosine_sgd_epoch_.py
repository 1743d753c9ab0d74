"""Samples of ``cosine_sgd_epoch_``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metarec.ops import cosine_sgd_epoch_, reference
from metarec.testing.ops.sample import Sample, double

Similarity = Literal["cosine", "dot"]
Loss = Literal["squared", "logistic"]

# Of bfloat16, where two results differ in the last bit of float32, the same noise may round them to neighbours: one in
# some 2^16 values of a step. A value is so kept one unit in the last place from what it would be, and others for what
# follows: 2^-7 of the greatest.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 2**-7}
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

EXACT: list[tuple[Similarity, int, int]] = [
    *(("cosine", dim, 40) for dim in (1, 4, 16, 64)),
    *(("dot", dim, 40) for dim in (3, 32, 33, 64, 70, 136)),
    ("cosine", 4, 2100),
]

PARAMETERS = ("users", "items", "user_biases", "item_biases", "head")


def samples() -> Iterator[Sample]:
    """Tables and ratings of all sizes, each similarity with each loss, and steps without an error of rounding."""
    for shape, (similarity, loss), dtype in product(
        SHAPES, KINDS, (torch.float32, torch.float64, torch.bfloat16)
    ):
        yield Epoch(*shape, similarity, loss, dtype)
    for similarity, dim, ratings in EXACT:
        yield ExactEpoch(ratings + 5, ratings + 2, dim, ratings, similarity, "squared", torch.bfloat16)


def problem(
    users: int,
    items: int,
    dim: int,
    ratings: int,
    dtype: torch.dtype = torch.float64,
    index: torch.dtype = torch.int32,
    seed: int = 0,
) -> tuple[Tensor, ...]:
    """Parameters, with tables of a type, and ratings from 0 to 1, a third of them of item 0."""
    generator = torch.Generator().manual_seed(seed)
    arithmetic = reference.arithmetic_type(dtype)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(arithmetic)

    parameters = (
        (normal(users, dim) / max(dim, 1) ** 0.5).to(dtype),
        (normal(items, dim) / max(dim, 1) ** 0.5).to(dtype),
        0.3 * normal(users),
        0.3 * normal(items),
        torch.tensor([0.8, 0.3], dtype=arithmetic),
    )
    user = torch.randint(max(users, 1), (ratings,), generator=generator)
    item = torch.randint(max(items, 1), (ratings,), generator=generator)
    item[torch.rand(ratings, generator=generator) < 0.33] = 0
    rating = torch.rand(ratings, generator=generator, dtype=torch.float64).to(arithmetic)
    return *parameters, user.to(index), item.to(index), rating


def in_double(arguments: Sequence[Tensor]) -> list[Tensor]:
    """Give copies, in double precision but for what is stored in 16 bits."""
    return [
        argument.clone() if argument.dtype == torch.bfloat16 else double((argument,))[0]
        for argument in arguments
    ]


@dataclass(frozen=True)
class Epoch(Sample):
    """The loss and the parameters after an epoch, beside the reference in double precision.

    Tables of bfloat16 are that in the reference too, rounded after each step.
    """

    users: int
    items: int
    dim: int
    ratings: int
    similarity: Similarity
    loss: Loss
    dtype: torch.dtype

    lr: ClassVar[float] = 0.05
    l2: ClassVar[float] = 0.1
    head_lr: ClassVar[float] = 0.02

    def arguments(self) -> list[Tensor]:
        index = torch.int64 if self.dim % 2 else torch.int32
        return list(problem(self.users, self.items, self.dim, self.ratings, self.dtype, index))

    def call(self, *arguments: Tensor) -> dict[str, Tensor]:
        parameters = [parameter.clone() for parameter in arguments[:5]]
        users, items, user_biases, item_biases, head = parameters
        loss = cosine_sgd_epoch_(
            users, items, user_biases, item_biases, head, *arguments[5:],
            lr=self.lr, l2=self.l2, similarity=self.similarity, loss=self.loss, seed=3, head_lr=self.head_lr,
        )  # fmt: skip
        return {"loss": loss, **dict(zip(PARAMETERS, parameters, strict=True))}

    def expected(self, *arguments: Tensor) -> dict[str, Tensor]:
        changed = in_double(arguments)
        kind = self.similarity == "cosine", self.loss == "logistic"
        loss = reference.cosine_sgd_epoch_(*changed, self.lr, self.l2, *kind, 3, self.head_lr)  # type: ignore[call-arg, arg-type]
        return {"loss": loss, **dict(zip(PARAMETERS, map(Tensor.double, changed), strict=False))}

    def tolerance(self, name: str) -> float:
        return TOLERANCE[self.dtype]


@dataclass(frozen=True)
class ExactEpoch(Epoch):
    """Steps on rows of a few bits, each named once, that are exact in float32: so is what they are rounded to."""

    lr: ClassVar[float] = 0.25
    l2: ClassVar[float] = 0.0
    head_lr: ClassVar[float] = 0.0

    def arguments(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.dim)

        def whole(least: int, most: int, *shape: int) -> Tensor:
            return torch.randint(least, most + 1, shape, generator=generator).float()

        def table(rows: int) -> Tensor:
            # Signs, so that norms are exact where the number of dimensions is a square.
            signs = 2 * whole(0, 1, rows, self.dim) - 1
            return (signs if self.similarity == "cosine" else whole(-16, 16, rows, self.dim) / 16).to(
                self.dtype
            )

        biases = whole(-8, 8, self.users) / 8, whole(-8, 8, self.items) / 8
        user, item = (
            torch.randperm(rows, generator=generator)[: self.ratings] for rows in (self.users, self.items)
        )
        rating = whole(0, 4, self.ratings) / 4
        return [table(self.users), table(self.items), *biases, torch.tensor([0.5, 0.25]), user, item, rating]

    def tolerance(self, name: str) -> float:
        return TOLERANCE[torch.float32] if name == "loss" else 0.0

"""Samples of ``embedding_update_``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor

from metarec.ops import embedding_state, embedding_update_, reference
from metarec.testing.ops.sample import Sample, double

Rule = Literal["sgd", "adagrad", "adam"]
RULES: tuple[Rule, ...] = ("sgd", "adagrad", "adam")
OPTIONS: dict[str, Any] = {"lr": 0.0971, "l2": 0.3137, "weight_decay": 0.2, "betas": (0.8, 0.9), "eps": 1e-3}
"""No round numbers, or many results of bfloat16 values were just in the middle of two others."""
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 2.0**-7}
"""Of the table. Where the float32 result is near the middle of two bfloat16 values (stochastically: near where the
noise sets it) its last bits decide: these are one unit in the last place apart, which is at most 2^-7 of the value."""
STEPS = {torch.float32: 3, torch.float64: 3, torch.bfloat16: 1}
"""One of bfloat16, for what is rounded either way goes different ways from there."""

SHAPES = [
    (4, 3, 0),
    (1, 1, 1),
    (1, 64, 700),
    (5, 0, 7),
    (7, 3, 40),
    (50, 33, 300),
    (3000, 64, 5000),
    (90, 65, 1000),
    (10, 128, 2000),
    (5000, 7, 40_000),
    (70_000, 2, 600),
]


def samples() -> Iterator[Sample]:
    """Tables and gradients of all sizes, by each rule."""
    for shape, dtype, rule in product(SHAPES, (torch.float32, torch.float64, torch.bfloat16), RULES):
        yield Steps(*shape, dtype, rule)
        if dtype == torch.bfloat16:
            yield Steps(*shape, dtype, rule, seed=3)


def problem(
    count: int,
    dim: int,
    entries: int,
    dtype: torch.dtype = torch.float64,
    index: torch.dtype = torch.int64,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """A table and gradients of its rows, a third of them of its last row."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(count, dim, generator=generator, dtype=torch.float64).to(dtype)
    rows = torch.randint(max(count, 1), (entries,), generator=generator)
    rows[torch.rand(entries, generator=generator) < 0.33] = count - 1
    gradients = torch.randn(entries, dim, generator=generator, dtype=torch.float64).to(dtype)
    return table, rows.to(index), gradients


def by_reference(
    table: Tensor,
    rows: Tensor,
    gradients: Tensor,
    rule: Rule,
    state: dict[str, Tensor],
    *,
    lr: float,
    l2: float = 0.0,
    weight_decay: float = 0.0,
    betas: tuple[float, float],
    eps: float,
    seed: int | None = None,
) -> None:
    """Make the step of the reference."""
    values = [state[name] for name in state]
    reference.embedding_update_(table, values, rows, gradients, rule, lr, l2, weight_decay, *betas, eps, seed)


def rounded(table: Tensor, touched: Tensor, seed: int | None) -> Tensor:
    """Round the rows that were touched to bfloat16; give the table in float64."""
    values = table[touched].float()
    if seed is not None:
        values = reference.round_stochastically(
            values, reference.row_noise(seed, touched.tolist(), table.size(1))
        )
    return table.index_copy(0, touched, values.bfloat16().double())


@dataclass(frozen=True)
class Steps(Sample):
    """The table and the state after some steps, beside the reference."""

    count: int
    dim: int
    entries: int
    dtype: torch.dtype
    rule: Rule
    seed: int | None = None

    def arguments(self) -> list[Tensor]:
        drawn = [problem(self.count, self.dim, 0, self.dtype)[0]]
        for step in range(STEPS[self.dtype]):
            index = torch.int32 if step % 2 else torch.int64
            drawn += problem(self.count, self.dim, self.entries, self.dtype, index, seed=step)[1:]
        return drawn

    def call(self, *arguments: Tensor) -> dict[str, Tensor]:
        table = arguments[0].clone()
        state = embedding_state(table, self.rule)
        for rows, gradients in zip(arguments[1::2], arguments[2::2], strict=True):
            embedding_update_(table, rows, gradients, rule=self.rule, state=state, seed=self.seed, **OPTIONS)
        return {"table": table, **state}

    def expected(self, *arguments: Tensor) -> dict[str, Tensor]:
        table, *rest = double(arguments)
        state = embedding_state(table, self.rule)
        for rows, gradients in zip(rest[::2], rest[1::2], strict=True):
            by_reference(table, rows, gradients, self.rule, state, **OPTIONS)
            if self.dtype == torch.bfloat16:
                table = rounded(table, rows.long().unique(), self.seed)
        return {"table": table, **state}

    def tolerance(self, name: str) -> float:
        return TOLERANCE[self.dtype if name == "table" else reference.arithmetic_type(self.dtype)]

    def compare(self, name: str, found: Tensor, expected: Tensor) -> None:
        """Compare, and of a bfloat16 table find nearly all values equal."""
        super().compare(name, found, expected)
        if name == "table" and self.dtype == torch.bfloat16:
            apart = int((found != expected).sum())
            if apart > 1 + expected.numel() / 1000:
                raise AssertionError(
                    f"table: {apart} of {expected.numel()} values are rounded to another value"
                )

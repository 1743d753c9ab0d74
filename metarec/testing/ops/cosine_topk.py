"""Samples of ``cosine_topk``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from metarec.ops import cosine_topk, prepare_items
from metarec.testing.ops.sample import Sample

Similarity = Literal["cosine", "dot"]
SIMILARITIES: tuple[Similarity, Similarity] = ("cosine", "dot")

# Scores are summed in double precision and rounded once; the reference's are exact but for that.
TOLERANCE = {torch.float32: 1.2e-7, torch.float64: 1e-13, torch.bfloat16: 1.2e-7}

SHAPES = [
    (0, 5, 3, 2),
    (1, 1, 1, 1),
    (1, 1000, 64, 20),
    (3, 257, 7, 257),
    (5, 31, 16, 1),
    (17, 300, 33, 5),
    (40, 5000, 65, 10),
    (70, 129, 1, 3),
    (33, 900, 128, 0),
    (6, 77, 0, 4),
    (2, 20000, 24, 50),
]


def samples() -> Iterator[Sample]:
    """Queries and items of all sizes, and whole numbers, many of whose scores are equal."""
    for shape, dtype, similarity, prepared in product(
        SHAPES, (torch.float32, torch.float64, torch.bfloat16), SIMILARITIES, (False, True)
    ):
        yield Best(*shape, dtype, similarity, prepared)
    for batch, dtype, prepared in product((1, 5, 40), (torch.float32, torch.bfloat16), (False, True)):
        yield Best(batch, 9000, 6, 60, dtype, "dot", prepared, whole=True)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Draw from the standard normal."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def brute_force(
    queries: Tensor, items: Tensor, k: int, excluded: tuple[Tensor, Tensor] | None, similarity: Similarity
) -> tuple[Tensor, Tensor]:
    """Sort (score, row) of every pair in exact-as-possible NumPy arithmetic."""
    left, right = (side.double().numpy().astype(np.longdouble) for side in (queries, items))
    scores: np.ndarray[Any, Any] = left @ right.T
    if similarity == "cosine":
        lengths = [np.maximum(np.sqrt((side**2).sum(1)), 1e-12) for side in (left, right)]
        scores = scores / lengths[0][:, None] / lengths[1][None, :]
    scores = scores.astype(np.float64 if queries.dtype == torch.float64 else np.float32)
    if excluded is not None:
        for query in range(len(scores)):
            scores[query, excluded[1][excluded[0][query] : excluded[0][query + 1]].numpy()] = -np.inf
    scores = np.where(np.isnan(scores), -np.inf, scores)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, axis=1)
    return torch.from_numpy(best), torch.from_numpy(np.where(np.isneginf(best), -1, order))


def ragged(lists: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Give the offsets and the rows of lists."""
    offsets = torch.tensor([0, *np.cumsum([len(rows) for rows in lists], dtype=int)])
    return offsets, torch.tensor([row for rows in lists for row in rows], dtype=torch.int64)


@dataclass(frozen=True)
class Best(Sample):
    """Scores and rows of the best, four rows of each query excluded, beside a stable sort of all scores."""

    batch: int
    count: int
    dim: int
    k: int
    dtype: torch.dtype
    similarity: Similarity
    prepared: bool
    whole: bool = False

    def arguments(self) -> list[Tensor]:
        queries = normal(self.batch, self.dim, dtype=self.dtype)
        items = normal(self.count, self.dim, dtype=self.dtype, seed=1)
        if self.whole:
            queries, items = queries.round(), items.round()
        randoms = (np.random.default_rng(row) for row in range(self.batch))
        excluded = ragged([random.integers(0, self.count, 4).tolist() for random in randoms])
        return [queries, items, *excluded]

    def call(self, *arguments: Tensor) -> dict[str, Tensor]:
        queries, items, *excluded = arguments
        table = prepare_items(items, similarity=self.similarity) if self.prepared else items
        scores, rows = cosine_topk(
            queries, table, self.k, excluded=(excluded[0], excluded[1]), similarity=self.similarity
        )
        return {"scores": scores, "rows": rows}

    def expected(self, *arguments: Tensor) -> dict[str, Tensor]:
        queries, items, *excluded = arguments
        scores, rows = brute_force(queries, items, self.k, (excluded[0], excluded[1]), self.similarity)
        return {"scores": scores, "rows": rows}

    def tolerance(self, name: str) -> float:
        return TOLERANCE[self.dtype]

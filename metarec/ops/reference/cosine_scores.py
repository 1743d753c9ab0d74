"""`cosine_scores` and its gradients, dense and by row, by gathering both vectors of each pair."""

from __future__ import annotations

import torch
from torch import Tensor

from metarec.ops.reference.indices import check_rows

NORM_EPSILON = 1e-12
"""A norm below this counts as this, so that the cosine with a zero vector is zero."""


def _check_pairs(left: Tensor, right: Tensor, left_rows: Tensor, right_rows: Tensor) -> None:
    check_rows("cosine_scores: rows of the first table", left_rows, left.size(0))
    check_rows("cosine_scores: rows of the second table", right_rows, right.size(0))


def arithmetic_type(stored: torch.dtype) -> torch.dtype:
    """Give the type that values of a type are computed in."""
    return torch.float32 if stored == torch.bfloat16 else stored


def cosine_scores(
    left: Tensor, right: Tensor, left_rows: Tensor, right_rows: Tensor, sparse_grad: bool
) -> tuple[Tensor, Tensor]:
    """Give the cosine of each pair, and one over the product of its norms; ``sparse_grad`` is for autograd."""
    _check_pairs(left, right, left_rows, right_rows)
    u, v = (
        table[rows.long()].to(arithmetic_type(table.dtype))
        for table, rows in ((left, left_rows), (right, right_rows))
    )
    inverse_norms = 1 / (_length(u) * _length(v))[:, 0]
    return (u * v).sum(1) * inverse_norms, inverse_norms


def _length(vectors: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return norms.clamp_min(NORM_EPSILON)


def cosine_scores_gradient(
    gradient: Tensor,
    scores: Tensor,
    inverse_norms: Tensor,
    left: Tensor,
    right: Tensor,
    left_rows: Tensor,
    right_rows: Tensor,
) -> Tensor:
    """Give the gradient of the first table."""
    _check_pairs(left, right, left_rows, right_rows)
    v = right[right_rows.long()].to(scores.dtype)
    u, rows = left.to(scores.dtype), left_rows.long()
    sums = torch.zeros_like(u).index_add_(0, rows, (gradient * inverse_norms)[:, None] * v)
    along = u.new_zeros(u.size(0)).index_add_(0, rows, gradient * scores)
    norms = torch.linalg.vector_norm(u, dim=1, keepdim=True)
    direction = torch.where(norms > NORM_EPSILON, u / norms, 0)
    total = sums - along[:, None] * direction / norms.clamp_min(NORM_EPSILON)
    return torch.where(norms <= NORM_EPSILON, 0, total).to(left.dtype)


def cosine_scores_row_gradient(
    gradient: Tensor,
    scores: Tensor,
    inverse_norms: Tensor,
    left: Tensor,
    right: Tensor,
    left_rows: Tensor,
    right_rows: Tensor,
) -> tuple[Tensor, Tensor]:
    """Give the distinct rows of the first table that the pairs name, ascending, and their gradients."""
    table = cosine_scores_gradient(gradient, scores, inverse_norms, left, right, left_rows, right_rows)
    rows = torch.unique(left_rows.long())
    return rows, table[rows]

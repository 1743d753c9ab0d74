"""`cosine_topk` and what it prepares of the items: all scores of a tile of queries, then their k best."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from metarec.ops.reference.cosine_scores import NORM_EPSILON, arithmetic_type
from metarec.ops.reference.indices import check_offsets

CODE_GROUP = 16
"""Items whose codes lie side by side in the compact table."""


_TILE_SCORES = 1 << 24


def cosine_topk_prepare(items: Tensor, cosine: bool, compact: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count, dim = items.shape
    norms = torch.linalg.vector_norm(items, dim=1, dtype=torch.float64)
    largest_norm = F.pad(norms.nan_to_num(0, math.inf), (0, 1)).amax(0, keepdim=True)
    groups, pairs = -(-count // CODE_GROUP) if compact else 0, -(-dim // 2)
    table = norms.new_zeros(groups * CODE_GROUP, 2 * pairs)
    table[:count, :dim] = items[: table.size(0)]
    finite = table.isfinite().all(1)
    table[~finite] = 0
    scales = F.pad(table.abs(), (0, 1)).amax(1) / 127
    codes = (table / scales.where(scales > 0, 1.0)[:, None]).round()
    errors = torch.linalg.vector_norm(table - scales[:, None] * codes, dim=1).where(finite, math.inf)
    bounds = torch.stack([scales, errors])
    if cosine and compact:
        bounds[:, :count] /= norms.clamp_min(NORM_EPSILON).where(finite[:count], 1.0)
    return (
        norms,
        largest_norm,
        codes.to(torch.int8).view(groups, CODE_GROUP, pairs, 2).transpose(1, 2),
        bounds.float().view(2, groups, CODE_GROUP).transpose(0, 1),
    )


def cosine_topk(
    queries: Tensor,
    items: Tensor,
    norms: Tensor,
    largest_norm: Tensor,
    codes: Tensor,
    code_bounds: Tensor,
    k: int,
    excluded_offsets: Tensor | None,
    excluded_rows: Tensor | None,
    cosine: bool,
) -> tuple[Tensor, Tensor]:
    table, left = items.double(), queries.double()
    lengths = norms.clamp_min(NORM_EPSILON)
    query_lengths = torch.linalg.vector_norm(left, dim=1, keepdim=True).clamp_min(NORM_EPSILON)
    if excluded_offsets is not None and excluded_rows is not None:
        check_offsets("cosine_topk: excluded offsets", excluded_offsets, excluded_rows.size(0))
        outside = (excluded_rows < 0) | (excluded_rows >= items.size(0))
        if outside.any():
            row = int(excluded_rows[outside][0])
            raise ValueError(f"cosine_topk: excluded rows must be from 0 to {items.size(0) - 1}, got {row}")
    dtype = arithmetic_type(queries.dtype)
    scores = queries.new_empty(queries.size(0), k, dtype=dtype)
    rows = torch.empty(queries.size(0), k, dtype=torch.int64, device=queries.device)
    step = max(1, _TILE_SCORES // max(1, items.size(0)))
    for begin in range(0, queries.size(0), step):
        tile = left[begin : begin + step] @ table.mT
        if cosine:
            tile = tile / (query_lengths[begin : begin + step] * lengths)
        tile = tile.to(dtype)
        tile = torch.where(tile.isnan(), -math.inf, tile)
        if excluded_offsets is not None and excluded_rows is not None:
            bounds = excluded_offsets[begin : begin + tile.size(0) + 1]
            owner = torch.repeat_interleave(torch.arange(tile.size(0), device=tile.device), bounds.diff())
            tile[owner, excluded_rows[int(bounds[0]) : int(bounds[-1])]] = -math.inf
        best, chosen = _topk_lowest_row(tile, k)
        scores[begin : begin + step] = best
        rows[begin : begin + step] = chosen
    return scores, rows


def _topk_lowest_row(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Give the k best of each row, equal scores by lower column; torch.topk leaves the order of equals open."""
    if k == 0:
        return scores[:, :0], torch.empty(scores.size(0), 0, dtype=torch.int64, device=scores.device)
    last = scores.topk(k, dim=1).values[:, -1:]
    above, equal = scores > last, scores == last
    keep = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
    columns = keep.nonzero()[:, 1].view(scores.size(0), k)
    best, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return best, torch.where(best > -math.inf, columns.gather(1, order), -1)

"""Exact retrieval of the k best items of each query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metarec.ops import reference
from metarec.ops.library import register

Similarity = Literal["cosine", "dot"]


@dataclass(frozen=True)
class PreparedItems:
    """An item table with what :func:`cosine_topk` needs beside it, made once by :func:`prepare_items`."""

    items: Tensor
    """The items as given, ``[N, d]``."""
    norms: Tensor
    """Their Euclidean norms, float64, ``[N]``."""
    largest_norm: Tensor
    """The largest of these, ``[1]``."""
    codes: Tensor
    """The items in 8 bits for the first pass over them, empty where there is no such pass."""
    code_bounds: Tensor
    """Per item the scale of its code and a bound on the error of the code, float32."""
    similarity: Similarity
    """What the codes are for."""


def prepare_items(items: Tensor, *, similarity: Similarity = "cosine") -> PreparedItems:
    """Prepare an item table that many calls of :func:`cosine_topk` will search.

    It takes one pass over the table and adds to its memory: about a quarter for float32, a half for bfloat16, and for
    float64 the norms alone. Results are the same with and without it; single queries become several times faster where
    the table is not float64.

    Parameters
    ----------
    items : Tensor
        The items, ``[N, d]``, float32, float64 or bfloat16. Not copied where contiguous: do not change them afterwards.
    similarity : {"cosine", "dot"}
        The similarity that the calls will use.

    Returns
    -------
    PreparedItems

    Raises
    ------
    ValueError
        If shape or type do not fit.
    """
    _check_matrix("prepare_items", "items", items)
    cosine = _is_cosine("prepare_items", similarity)
    table = items.detach().contiguous()
    norms, largest_norm, codes, bounds = _prepare(table, cosine, table.dtype != torch.float64)
    return PreparedItems(table, norms, largest_norm, codes, bounds, similarity)


def cosine_topk(
    queries: Tensor,
    items: Tensor | PreparedItems,
    k: int,
    *,
    excluded: tuple[Tensor, Tensor] | None = None,
    similarity: Similarity = "cosine",
) -> tuple[Tensor, Tensor]:
    r"""Give the exact ``k`` best items of each query, best first.

    The score of query :math:`q` and item :math:`x` is :math:`q^\top x` or, for the cosine,
    :math:`q^\top x / (\max(\|q\|, \epsilon) \max(\|x\|, \epsilon))` with :math:`\epsilon = 10^{-12}`, so that a zero
    vector has similarity zero with everything. Scores are summed in double precision and then rounded to the type of
    the arguments, or to float32 where that is bfloat16, so they do not depend on threads or tiles. Equal scores are
    ordered by row, lower first. A score that is NaN or minus infinity is never among the best.

    Parameters
    ----------
    queries : Tensor
        Queries, ``[B, d]``, float32, float64 or bfloat16.
    items : Tensor or PreparedItems
        Items, ``[N, d]``, of the type of the queries.
    k : int
        How many items each query gets, ``0 <= k <= N``.
    excluded : tuple of Tensor, optional
        ``(offsets [B + 1], rows)``, int64: query ``b`` never gets the items ``rows[offsets[b]:offsets[b + 1]]``.
        Rows may be in any order and may repeat.
    similarity : {"cosine", "dot"}
        Which score.

    Returns
    -------
    tuple of Tensor
        ``scores [B, k]``, of the arguments' type or float32 for bfloat16, and ``rows [B, k]`` (int64). Where fewer than
        ``k`` items are left, the tail is score minus infinity and row -1. They carry no gradient: score the rows again
        where one is needed.

    Raises
    ------
    ValueError
        If shapes or types do not fit, ``k`` is above the number of items, excluded offsets or rows are out of range,
        or the items were prepared for another similarity.
    """
    _check_matrix("cosine_topk", "queries", queries)
    cosine = _is_cosine("cosine_topk", similarity)
    if isinstance(items, PreparedItems):
        if items.similarity != similarity:
            raise ValueError(
                f"cosine_topk: the items were prepared for {items.similarity!r}, not {similarity!r}"
            )
        prepared = items
    else:
        _check_matrix("cosine_topk", "items", items)
        table = items.detach().contiguous()
        norms, largest_norm, codes, bounds = _prepare(table, cosine, False)
        prepared = PreparedItems(table, norms, largest_norm, codes, bounds, similarity)
    table = prepared.items
    if table.dtype != queries.dtype or table.device != queries.device:
        raise ValueError(
            f"cosine_topk: items must be {queries.dtype} on {queries.device}, got {table.dtype} on {table.device}"
        )
    if table.size(1) != queries.size(1):
        raise ValueError(
            f"cosine_topk: queries have {queries.size(1)} dimensions, items have {table.size(1)}"
        )
    if not 0 <= k <= table.size(0):
        raise ValueError(f"cosine_topk: k must be from 0 to the number of items, {table.size(0)}, got {k}")
    offsets, rows = (None, None) if excluded is None else excluded
    if offsets is not None and rows is not None:
        for name, value in (("offsets", offsets), ("rows", rows)):
            if value.dtype != torch.int64 or value.dim() != 1 or value.device != queries.device:
                raise ValueError(
                    f"cosine_topk: excluded {name} must be int64 of one dimension on {queries.device}, "
                    f"got {value.dtype} of shape {list(value.shape)} on {value.device}"
                )
        if offsets.size(0) != queries.size(0) + 1:
            raise ValueError(
                f"cosine_topk: excluded offsets must have shape [{queries.size(0) + 1}], got {list(offsets.shape)}"
            )
    with torch.no_grad():
        best: tuple[Tensor, Tensor] = _topk(
            queries,
            table,
            prepared.norms,
            prepared.largest_norm,
            prepared.codes,
            prepared.code_bounds,
            k,
            offsets,
            rows,
            cosine,
        )
    return best


def _check_matrix(op: str, name: str, value: Tensor) -> None:
    if value.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        raise ValueError(f"{op}: {name} must be float32, float64 or bfloat16, got {value.dtype}")
    if value.dim() != 2:
        raise ValueError(f"{op}: {name} must have two dimensions, got shape {list(value.shape)}")


def _is_cosine(op: str, similarity: str) -> bool:
    if similarity not in ("cosine", "dot"):
        raise ValueError(f"{op}: similarity must be 'cosine' or 'dot', got {similarity!r}")
    return similarity == "cosine"


def _fake_prepare(items: Tensor, compact: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    norms = items.new_empty(items.size(0), dtype=torch.float64)
    groups = -(-items.size(0) // reference.CODE_GROUP) if compact else 0
    codes = items.new_empty((groups, -(-items.size(1) // 2), reference.CODE_GROUP, 2), dtype=torch.int8)
    bounds = items.new_empty((groups, 2, reference.CODE_GROUP), dtype=torch.float32)
    return norms, norms.new_empty(1), codes, bounds


def _fake_topk(queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (queries.size(0), k)
    scores = queries.new_empty(shape, dtype=reference.arithmetic_type(queries.dtype))
    return scores, scores.new_empty(shape, dtype=torch.int64)


_prepare = register(reference.cosine_topk_prepare, fake=_fake_prepare)
_topk = register(reference.cosine_topk, fake=_fake_topk)

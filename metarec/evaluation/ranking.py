"""Where lists have their partners: ties counted, no list stored that need not be."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def ragged_places(offsets: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """How many of its list each entry has above it, and how many level with it.

    Parameters
    ----------
    offsets : int64 [T + 1]
        List t is ``score[offsets[t] : offsets[t + 1]]``.
    score : float [n]

    Returns
    -------
    start, size : int64 [n]
        Number of entries of the same list with a greater score, and with the same score (itself included).
    """
    owner = torch.repeat_interleave(torch.arange(offsets.numel() - 1, device=offsets.device), offsets.diff())
    order = torch.argsort(score, descending=True, stable=True)
    order = order[torch.argsort(owner[order], stable=True)]
    its_owner, its_score = owner[order], score[order]
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = (its_owner[1:] != its_owner[:-1]) | (its_score[1:] != its_score[:-1])
    group = first.cumsum(0) - 1
    start, size = torch.empty_like(order), torch.empty_like(order)
    start[order] = first.nonzero().squeeze(1)[group] - offsets[its_owner]
    size[order] = torch.bincount(group)[group] if group.numel() else group
    return start, size


class Places(NamedTuple):
    """What `catalogue_places` finds of T lists over C candidates, to a depth K, for n pairs."""

    top: Tensor  # int64 [T, K]: the first candidates, ties by lower row; −1 where the list is shorter
    value: Tensor  # float [T, K]: their scores
    start: Tensor  # int64 [n]: candidates above each pair; K where it is not among the first K
    size: Tensor  # int64 [n]: candidates level with it; 1 where it is not among the first K


def catalogue_places(score: Tensor, owner: Tensor, column: Tensor, depth: int) -> Places:
    """The first `depth` candidates of each list, and where the pairs asked for stand.

    One partial sort gives all of it; only lists with a tie across position `depth` are looked at again.

    Parameters
    ----------
    score : float [T, C]
        −inf where a candidate is not in the list.
    owner, column : int64 [n]
        The pairs, by list and candidate; column −1 where it is no candidate.
    depth : int
        In ``1 … C``.
    """
    value, top = _best(score, depth)
    edge = value[:, depth - 1]
    tied = (edge == value[:, depth]) & (edge > -torch.inf)
    level = (value == edge[:, None]).sum(1)
    if tied.any():
        rows = tied.nonzero().squeeze(1)
        equal = score[rows] == edge[rows, None]
        level[rows] = equal.sum(1)
        top[rows] = _lowest_at_edge(top[rows], value[rows] > edge[rows, None], equal, depth)
    its_score = torch.where(column < 0, -torch.inf, score[owner, column])
    inside = ((its_score >= edge[owner]) & (its_score > -torch.inf)).nonzero().squeeze(1)
    its_list, its_score = owner[inside], its_score[inside, None]
    start, size = torch.full_like(owner, depth), torch.ones_like(owner)
    start[inside] = (value[its_list] > its_score).sum(1)
    at_edge = its_score.squeeze(1) == edge[its_list]
    size[inside] = torch.where(at_edge, level[its_list], (value[its_list] == its_score).sum(1))
    first = value[:, :depth]
    return Places(top[:, :depth].masked_fill(first == -torch.inf, -1), first, start, size)


def _best(score: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """The first ``depth + 1`` scores and columns of each row, ties among them by lower column; −inf beyond the end."""
    value, top = score.topk(min(depth + 1, score.shape[1]), dim=1)
    top, order = top.sort(dim=1)
    value, order = value.gather(1, order).sort(dim=1, descending=True, stable=True)
    top = top.gather(1, order)
    missing = depth + 1 - value.shape[1]
    pad = torch.nn.functional.pad
    return pad(value, (0, missing), value=-torch.inf), pad(top, (0, missing), value=-1)


def _lowest_at_edge(top: Tensor, above: Tensor, equal: Tensor, depth: int) -> Tensor:
    """`top`, its places that are not `above` the edge given to the lowest columns that are `equal` to it."""
    count = equal.shape[1]
    descending = torch.arange(count, 0, -1, dtype=torch.int32, device=equal.device)
    lowest = (equal * descending).topk(min(depth + 1, count), dim=1).indices
    place = torch.arange(top.shape[1], device=top.device) - above.sum(1, keepdim=True)
    return torch.where(above, top, lowest.gather(1, place.clamp(0, lowest.shape[1] - 1)))


def seen_places(places: Places, offsets: Tensor, column: Tensor, score: Tensor) -> Tensor:
    """Which of the first K candidates were left out of the lists, had they not been.

    The first K of all are among the first K of the lists and what was left out, so that no further pass over
    the catalogue is needed.

    Parameters
    ----------
    places : Places
        Of the lists.
    offsets : int64 [T + 1]
        What was left out of list t is ``offsets[t] : offsets[t + 1]``.
    column : int64 [m]
        The candidate that each of these partners is; −1 where it is none.
    score : float [m]
        Its score.

    Returns
    -------
    seen : bool [T, K]
    """
    tasks, depth = places.top.shape
    device = places.top.device
    left_out_owner = torch.repeat_interleave(torch.arange(tasks, device=device), offsets.diff())
    owner = torch.cat([torch.arange(tasks, device=device).repeat_interleave(depth), left_out_owner])
    row = torch.cat([places.top.flatten(), column])
    value = torch.cat([places.value.flatten(), score])
    seen = torch.arange(owner.numel(), device=device) >= tasks * depth
    order = torch.argsort(row)
    order = order[row[order] >= 0]
    order = order[torch.argsort(value[order], descending=True, stable=True)]
    order = order[torch.argsort(owner[order], stable=True)]
    owner, seen = owner[order], seen[order]
    length = torch.bincount(owner, minlength=tasks)
    place = torch.arange(owner.numel(), device=device) - (length.cumsum(0) - length)[owner]
    inside = place < depth
    result = torch.zeros_like(places.top, dtype=torch.bool)
    result[owner[inside], place[inside]] = seen[inside]
    return result


def log_binomial(n: Tensor, r: Tensor) -> Tensor:
    """float64: ``log C(n, r)``, elementwise; −inf where there is no way to choose, ``r > n`` or ``r < 0``."""
    possible = (r >= 0) & (r <= n)
    n, r = torch.where(possible, n, 0.0), torch.where(possible, r, 0.0)
    value = torch.lgamma(n + 1) - torch.lgamma(r + 1) - torch.lgamma(n - r + 1)
    return torch.where(possible, value, -torch.inf)

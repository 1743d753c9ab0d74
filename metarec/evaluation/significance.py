"""Paired bootstrap over entities, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_DRAWS_AT_ONCE = 1 << 22  # entities drawn per block of resamples: 32 MB of indices


def resampled_sums(values: Tensor, *, resamples: int, seed: int) -> Tensor:
    """Sums of each column over entities drawn with replacement, the same draws for all columns.

    Parameters
    ----------
    values : float64 [E, M]
        One row per entity.
    resamples : int
        Number B of resamples; each draws E entities.
    seed : int
        One seed, same draws.

    Returns
    -------
    sums : float64 [B, M]
    """
    counts = _draw_counts(values.shape[0], resamples, seed)
    return torch.cat([part @ values for part in counts])


def _draw_counts(entities: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """float64 [b, E] blocks, B rows in all: how often each resample has each entity."""
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, _DRAWS_AT_ONCE // max(1, entities))
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = torch.randint(entities, (count, entities), generator=generator)
        cell = drawn + torch.arange(count)[:, None] * entities
        yield (torch.bincount(cell.flatten(), minlength=count * entities).view(count, entities).double())


def interval(resampled: Tensor, level: float) -> Tensor:
    """float64 [2, M]: the central `level` of each column's resampled values [B, M] (percentile interval)."""
    tail = (1 - level) / 2
    return resampled.quantile(torch.tensor([tail, 1 - tail], dtype=resampled.dtype), dim=0)


def p_value(gain: float, resampled: Tensor) -> float:
    """Two-sided p of no gain: the gain over its bootstrap standard error, held against the normal
    distribution.

    Counting resamples beyond zero could not go below 2 / B, which a correction for many cells needs.
    """
    error = float(resampled.std())
    if error == 0.0:
        return 1.0 if gain == 0.0 else 0.0
    return math.erfc(abs(gain) / error / math.sqrt(2))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values of a family of tests, which keep its chance of any false finding (Holm 1979).

    The i-th smallest of m is multiplied by m − i + 1, made no smaller than the one before it, and capped at
    1.
    """
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = least
    return adjusted

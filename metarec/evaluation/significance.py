"""Paired bootstrap over entities, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist

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


def p_value(gain: float, error: float) -> float:
    """Two-sided p of no gain: the gain over its bootstrap standard error, held against the normal
    distribution.

    Counting resamples beyond zero could not go below 2 / B, which a correction for many cells needs.
    """
    if error == 0.0:
        return 1.0 if gain == 0.0 else 0.0
    return math.erfc(abs(gain) / error / math.sqrt(2))


def normal_interval(gain: float, error: float, level: float) -> tuple[float, float]:
    """``gain ± z · error``, which excludes zero just where `p_value` is below ``1 − level``."""
    reach = NormalDist().inv_cdf((1 + level) / 2) * error
    return gain - reach, gain + reach


def holm_levels(p_values: Sequence[float], level: float) -> list[float]:
    """Levels of the intervals that exclude zero just where Holm's correction finds a difference.

    In order of p, the i-th smallest of m is held against its share of α = 1 − `level`, α / (m − i + 1), as long
    as all before it were below theirs; those after the first that is not are held against its share (Holm
    1979). So the chance of any false finding in the family is at most α. The result is 1 less the share.
    """
    levels, share, finding = [level] * len(p_values), 1 - level, True
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if finding:
            share = (1 - level) / (len(p_values) - rank)
            finding = p_values[index] < share
        levels[index] = 1 - share
    return levels

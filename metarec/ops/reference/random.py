"""Numbers that look random and follow from their place alone, as the kernels have them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

STEP = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1


def split_mix(state: int) -> int:
    """Give what SplitMix64 (Steele, Lea and Flood 2014) makes of its state."""
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ state >> 27) * 0x94D049BB133111EB & MASK
    return state ^ state >> 31


def stream_state(seed: int, stream: int) -> int:
    """Give where the stream of a seed begins that a use has to itself."""
    return split_mix(seed ^ split_mix(stream + STEP & MASK))


def row_noise(seed: int, rows: Iterable[int], dim: int) -> Tensor:
    """Give the noise of stochastic rounding, ``[len(rows), dim]``, int64 below 2^16."""
    begins = torch.tensor([stream_state(seed, row) >> 32 for row in rows], dtype=torch.int64)
    return ((begins[:, None] + torch.arange(dim) * (STEP >> 32)) & 0xFFFFFFFF) >> 16


def round_stochastically(values: Tensor, noise: Tensor) -> Tensor:
    """Round float32 to bfloat16, up or down as the noise of each value says."""
    bits = values.contiguous().view(torch.int32).long() & 0xFFFFFFFF
    cut = (bits + noise.to(values.device)) & 0xFFFF0000
    rounded = torch.where(values.isnan(), bits, cut).to(torch.int32).view(torch.float32)
    return rounded.bfloat16()

"""Offsets and rows: their checks, with an error that shows the first wrong one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor


def segments(offsets: Tensor) -> Iterator[slice]:
    """Give the range of each task."""
    return (slice(begin, end) for begin, end in pairwise(offsets.tolist()))


def check_offsets(what: str, offsets: Tensor, count: int) -> None:
    """Raise ValueError unless they ascend from 0 to `count`."""
    if int(offsets[0]) != 0 or int(offsets[-1]) != count or (offsets.diff() < 0).any():
        raise ValueError(f"{what} must ascend from 0 to {count}, got {_shown(offsets)}")


def check_rows(what: str, rows: Tensor, count: int) -> None:
    """Raise ValueError unless all are rows of a table of `count`."""
    wrong = (rows < 0) | (rows >= count)
    if wrong.any():
        entry = int(wrong.nonzero()[0])
        raise ValueError(f"{what} must be from 0 to {count - 1}, got {int(rows[entry])} at {entry}")


def _shown(values: Tensor) -> str:
    head = ", ".join(str(int(value)) for value in values[:8])
    return f"[{head}, ...]" if values.numel() > 8 else f"[{head}]"

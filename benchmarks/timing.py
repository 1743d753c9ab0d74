"""Medians of calls that are timed in turn, and what this machine could do at best."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Call = Callable[[], object]

_LEAST_ROUNDS = 5
_LEAST_SPAN = 2e-3
"""Seconds below which the clock, and one interruption, would weigh too much: such a call is repeated."""


def medians(calls: Mapping[str, Call], *, seconds: float) -> dict[str, float]:
    """Give the median time of each call, in seconds.

    The calls take turns, round by round, so that what slows the machine for a while slows them all.

    Parameters
    ----------
    calls : mapping of str to callable
        What to time, by name. Each is called once before.
    seconds : float
        How long to go on, in total; there are five rounds at least.
    """
    repeats = {name: _repeats(call) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < _LEAST_ROUNDS or time.perf_counter() < end:
        for name, call in calls.items():
            times[name].append(_seconds_per_call(call, repeats[name]))
        rounds += 1
    return {name: statistics.median(taken) for name, taken in times.items()}


def _repeats(call: Call) -> int:
    call()
    repeats = 1
    while repeats * _seconds_per_call(call, repeats) < _LEAST_SPAN:
        repeats *= 2
    return repeats


def _seconds_per_call(call: Call, repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) / repeats


@dataclass(frozen=True)
class Rates:
    """What this machine does at best."""

    bytes_per_second: float
    """Read and written by a copy that no cache holds."""
    operations_per_second: float
    """Multiplications and additions in a product of matrices that is large enough to reach its rate."""

    @classmethod
    def measure(cls) -> Rates:
        """Measure them, with torch's threads."""
        source, square = torch.ones(1 << 24), torch.ones(768, 768)
        target = torch.empty_like(source)
        calls: dict[str, Call] = {"copy": lambda: target.copy_(source), "product": lambda: square @ square}
        medians(calls, seconds=0.5)  # the first calls are slower: threads begin, the clock rises
        taken = medians(calls, seconds=0.5)
        return cls(2 * 4 * source.numel() / taken["copy"], 2 * square.size(0) ** 3 / taken["product"])

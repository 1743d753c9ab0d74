"""Medians of calls that are timed in turn, and what this machine could do at best."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

Call = Callable[[], object]

_LEAST_ROUNDS = 5
_LEAST_SPAN = 2e-3
"""Seconds below which the clock, and one interruption, would weigh too much: such a call is repeated."""


CPU = torch.device("cpu")


def medians(calls: Mapping[str, Call], *, seconds: float, device: torch.device = CPU) -> dict[str, float]:
    """Give the median time of each call, in seconds.

    The calls take turns, round by round, so that what slows the machine for a while slows them all.

    Parameters
    ----------
    calls : mapping of str to callable
        What to time, by name. Each is called once before.
    seconds : float
        How long to go on, in total; there are five rounds at least.
    device : torch.device
        What the calls run on. On CUDA its own clock counts, between events in the current stream.
    """
    repeats = {name: _repeats(call, device) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < _LEAST_ROUNDS or time.perf_counter() < end:
        for name, call in calls.items():
            times[name].append(_seconds_per_call(call, repeats[name], device))
        rounds += 1
    return {name: statistics.median(taken) for name, taken in times.items()}


def _repeats(call: Call, device: torch.device) -> int:
    call()
    repeats = 1
    while repeats * _seconds_per_call(call, repeats, device) < _LEAST_SPAN:
        repeats *= 2
    return repeats


def _seconds_per_call(call: Call, repeats: int, device: torch.device) -> float:
    if device.type == "cuda":
        return _event_seconds_per_call(call, repeats, device)
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) / repeats


def _event_seconds_per_call(call: Call, repeats: int, device: torch.device) -> float:
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats


@dataclass(frozen=True)
class Rates:
    """What a device does at best."""

    bytes_per_second: float
    """Read and written by a copy."""
    operations_per_second: float
    """Multiplications and additions in a product of matrices that is large enough to reach its rate."""

    @classmethod
    def measure(
        cls, device: torch.device = CPU, dtype: torch.dtype = torch.float32, *, bytes: float = math.inf
    ) -> Rates:
        """Measure them, with torch's threads.

        Parameters
        ----------
        device : torch.device
            The device.
        dtype : torch.dtype
            The type of the matrices; float32 is not cut to TF32.
        bytes : float
            What the work reads and writes. Caches may hold so much: its rate is that of a copy of that size, where that
            is faster than a copy that no cache holds.
        """
        most, side = (1 << 27, 768) if device.type == "cpu" else (1 << 30, 8192)
        calls: dict[str, Call] = {}
        moved = {"copy": most} | ({"small copy": max(int(bytes), 2)} if bytes < most else {})
        for name, count in moved.items():
            source = torch.ones(count // 2, dtype=torch.uint8, device=device)
            target = torch.empty_like(source)
            calls[name] = partial(target.copy_, source)
        square = torch.ones(side, side, dtype=dtype, device=device)
        calls["product"] = lambda: square @ square
        tf32 = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            medians(
                calls, seconds=0.5, device=device
            )  # the first calls are slower: threads begin, the clock rises
            taken = medians(calls, seconds=0.5, device=device)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = tf32
        return cls(max(moved[name] / taken[name] for name in moved), 2 * side**3 / taken["product"])

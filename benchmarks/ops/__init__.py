"""The native ops beside their peers. One module per op, of its name, gives its cases on a device by ``cases``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.roofline import Work
from benchmarks.timing import Call


@dataclass(frozen=True)
class Case:
    """One piece of work, done by metarec and by others."""

    name: str
    """What the work is, with its sizes."""
    ours: Call
    work: Work
    """What any program must do for it."""
    peers: Mapping[str, Call] = field(default_factory=dict)
    """Others that do the same work."""
    least_ratio: Mapping[str, float] = field(default_factory=dict)
    """How many times faster than a peer we mean to be, by the name of the peer."""
    most_ms: float | None = None
    """How long we mean to take at most, in milliseconds."""
    faster_than_floor: str | None = None
    """Why we may be."""

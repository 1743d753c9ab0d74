"""`Run`: what a fit is given beside its data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from metarec.device import usable_device

if TYPE_CHECKING:
    from metarec.learning.algorithm import Algorithm

T = TypeVar("T")


class Progress(Protocol):
    """Shows how far something long has come."""

    def track(self, steps: Iterable[T], *, description: str, total: int | None = None) -> Iterable[T]:
        """Pass `steps` on one by one, showing how many are done."""
        ...

    def measured(self, values: Mapping[str, float]) -> None:
        """Show what the last step has measured, beside what is being tracked."""
        ...


class Silent:
    """A progress that shows nothing."""

    def track(self, steps: Iterable[T], *, description: str, total: int | None = None) -> Iterable[T]:
        """Pass `steps` on."""
        return steps

    def measured(self, values: Mapping[str, float]) -> None:
        """Show nothing."""


@dataclass(frozen=True)
class Run:
    """The circumstances of a fit.

    Parameters
    ----------
    device : torch.device, default CPU
        Where the work is done.
    dtype : torch.dtype, default float32
        Its precision.
    seed : int, default 0
        Of all random choices: one seed, same result.
    progress : Progress
        Shows the passes over the data, and what they measure.
    hooks : optional
        The hook relay of a plugin manager, which is told of every epoch.
    checkpoint : Path, optional
        File that a learner's fit writes after every epoch, and goes on from where it exists: the final numbers are the
        same as if it had not been stopped. Where newcomers choose the epochs, that training has a file beside it,
        ``….held-out``.

    Raises
    ------
    ConfigError
        The device cannot be used here.
    """

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    seed: int = 0
    progress: Progress = Silent()
    hooks: Any = None
    checkpoint: Path | None = None

    def __post_init__(self) -> None:
        usable_device(self.device)

    def generator(self) -> torch.Generator:
        """A fresh random generator, seeded; on the CPU, so that what it draws does not depend on the device."""
        return torch.Generator().manual_seed(self.seed)

    def epochs(self, count: int, description: str) -> Iterator[int]:
        """Count epochs 0, 1, … with progress."""
        yield from self.progress.track(range(count), description=description, total=count)

    def report(self, algorithm: Algorithm, epoch: int, values: Mapping[str, float]) -> None:
        """Tell people and plugins what an epoch measured."""
        self.progress.measured(values)
        if self.hooks is not None:
            self.hooks.after_epoch(algorithm=algorithm, epoch=epoch, values=values)

"""Progress bars on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

T = TypeVar("T")

PATIENCE = 2.0
"""Seconds before anything is shown."""


class Bars(Progress):
    """A `metarec.learning.Progress`: one bar, with the time left, for whatever takes longer than two seconds.

    It writes to standard error, vanishes when the work is done, and is silent where there is no terminal.
    """

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        super().__init__(*columns, console=console, transient=True, disable=not console.is_terminal)

    def track(self, steps: Iterable[T], *, description: str, total: int | None = None) -> Iterable[T]:  # type: ignore[override]
        """Pass `steps` on one by one, showing how many are done."""
        bar = self.add_task(description, total=total)
        try:
            for step in steps:
                yield step
                self.advance(bar)
        finally:
            self.remove_task(bar)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars of what has taken long enough."""
        yield self.make_tasks_table([task for task in self.tasks if (task.elapsed or 0) > PATIENCE])

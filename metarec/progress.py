"""Progress bars on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

T = TypeVar("T")

PATIENCE = 2.0
"""Seconds before anything is shown."""


class Bars(Progress):
    """A `metarec.learning.Progress`: one bar, with the time left, for whatever takes longer than two seconds.

    It writes to standard error, vanishes when the work is done, and is silent where there is no terminal.
    """

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), _Count(), _Time())
        # Standard output is the caller's: what is printed there meanwhile must not end up on standard error.
        super().__init__(
            *columns, console=console, transient=True, redirect_stdout=False, disable=not console.is_terminal
        )

    def track(self, steps: Iterable[T], *, description: str, total: int | None = None) -> Iterable[T]:  # type: ignore[override]
        """Pass `steps` on one by one, showing how many are done."""
        bar = self.add_task(
            description, total=None if total == 1 else total
        )  # nothing to count: the bar pulses
        try:
            for step in steps:
                yield step
                self.advance(bar)
        finally:
            self.remove_task(bar)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars of what has taken long enough."""
        yield self.make_tasks_table([task for task in self.tasks if (task.elapsed or 0) > PATIENCE])


class _Count(ProgressColumn):
    """How many of how many steps are done."""

    def render(self, task: Task) -> Text:
        return Text("" if task.total is None else f"{task.completed:.0f}/{task.total:.0f}")


class _Time(ProgressColumn):
    """The time left or, where nobody knows, the time that it has taken."""

    def render(self, task: Task) -> Text:
        column = TimeElapsedColumn() if task.total is None else TimeRemainingColumn()
        return column.render(task)

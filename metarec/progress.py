"""Progress bars on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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

    Beside the bar of a fit stands what its last epoch measured, such as the losses in training and of what is held out.

    It writes to standard error, vanishes when the work is done, and is silent where there is no terminal.
    """

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(24),
            _Count(),
            _Time(),
            _Measured(),
        )
        # Standard output is the caller's: what is printed there meanwhile must not end up on standard error.
        super().__init__(
            *columns, console=console, transient=True, redirect_stdout=False, disable=not console.is_terminal
        )

    def track(self, steps: Iterable[T], *, description: str, total: int | None = None) -> Iterable[T]:  # type: ignore[override]
        """Pass `steps` on one by one, showing how many are done."""
        # Where there is nothing to count the bar pulses.
        bar = self.add_task(description, total=None if total == 1 else total, measured={})
        try:
            for step in steps:
                yield step
                self.advance(bar)
        finally:
            self.remove_task(bar)

    def measured(self, values: Mapping[str, float]) -> None:
        """Show them beside the innermost bar."""
        if self.task_ids:
            self.update(self.task_ids[-1], measured=dict(values))

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


class _Measured(ProgressColumn):
    """What the last step measured: ``loss 0.812, valid loss 0.934``; what does not fit the line is cut off."""

    def render(self, task: Task) -> Text:
        values = (f"{name.replace('_', ' ')} {value:.3g}" for name, value in task.fields["measured"].items())
        return Text(", ".join(values), style="progress.data.speed", no_wrap=True, overflow="ellipsis")

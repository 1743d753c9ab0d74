"""Op after op: checked and timed, each in a process of its own; the results are on disk after each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.gpu.checks import TO_THE_END, Outcome, check_op, check_runs
from benchmarks.gpu.isolated import Died, isolated
from benchmarks.gpu.report import Results, Row, check_rows, show_checks
from benchmarks.gpu.timings import show_timing, time_op

RUNS = "runs"
"""The name that whole runs have beside the ops."""


class Session:
    """What is found out on a device, written to a file as it comes."""

    def __init__(self, device: str, results: Results, file: Path, console: Console) -> None:
        self.device, self.results, self.file, self.console = device, results, file, console

    def check(self, modules: Mapping[str, str], *, runs: bool) -> None:
        """Check the ops whose samples the modules have, and whole runs."""
        for op, module in modules.items():
            self._check(op, check_op, module, self.device)
        if runs:
            self._check(RUNS, check_runs, self.device)

    def time(self, ops: Iterable[str], seconds: float) -> None:
        """Time ops, each case for so long."""
        for op in ops:
            with self.console.status(f"timing {op}"):
                try:
                    for rows in isolated(time_op, op, self.device, seconds):
                        self._add_timings(rows)
                except Died as error:
                    self._add_timings([{"op": op, "case": None, "failed": str(error)}])

    def _add_timings(self, rows: list[Row]) -> None:
        self.console.print(show_timing(rows))
        self.results.timings += rows
        self.results.write(self.file)

    def _check(self, name: str, work: Callable[..., Iterator[Outcome]], *arguments: Any) -> None:
        with self.console.status(f"checking {name}"):
            rows = check_rows(name, _to_the_end(work, *arguments))
        self.console.print(show_checks(name, rows))
        self.results.checks += rows
        self.results.write(self.file)


def _to_the_end(work: Callable[..., Iterator[Outcome]], *arguments: Any) -> Iterator[Outcome]:
    """Give the outcomes of work in a process of its own, and whether it came to its end."""
    outcome = Outcome("")
    try:
        for outcome in isolated(work, *arguments):
            yield outcome
    except Died as error:
        yield Outcome(outcome.sample, TO_THE_END, False, str(error))
    else:
        if outcome.check != TO_THE_END:
            yield Outcome(outcome.sample, TO_THE_END, True)

"""The results, which are on disk after each op, and how they are shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.files import write_json
from benchmarks.gpu.checks import Outcome

Row = dict[str, Any]


@dataclass
class Results:
    """All that one call of the program has found out."""

    machine: dict[str, Any]
    checks: list[Row] = field(default_factory=list)
    timings: list[Row] = field(default_factory=list)
    complete: bool = False
    """Whether all that was asked for is in it."""

    @property
    def passed(self) -> bool:
        """Whether no check has failed, and nothing that was timed."""
        return not any(row["failures"] for row in self.checks) and not any(
            "failed" in row for row in self.timings
        )

    def write(self, path: Path) -> None:
        """Write them whole, in place of what is there."""
        write_json(path, asdict(self))


def check_rows(op: str, outcomes: Iterable[Outcome]) -> list[Row]:
    """Count the outcomes of an op, check by check."""
    rows: dict[str, Row] = {}
    for outcome in outcomes:
        if outcome.check is None:
            continue
        new = {"op": op, "check": outcome.check, "passed": 0, "not_applicable": 0, "failures": []}
        row = rows.setdefault(outcome.check, new)
        if outcome.passed is None:
            row["not_applicable"] += 1
        elif outcome.passed:
            row["passed"] += 1
        else:
            row["failures"].append({"sample": outcome.sample, "message": outcome.message})
    return list(rows.values())


def show_checks(op: str, rows: list[Row]) -> str:
    """Give a line on an op, and one on each check of it that failed, with its first sample."""
    passed, failed = sum(row["passed"] for row in rows), sum(len(row["failures"]) for row in rows)
    skipped = sum(row["not_applicable"] for row in rows)
    colour = "red" if failed else "green"
    line = f"[bold]{op}[/]: [{colour}]{passed} of {passed + failed} checks passed[/]"
    lines = [line + (f", {skipped} not applicable" if skipped else "")]
    for row in rows:
        if row["failures"]:
            first = row["failures"][0]
            lines.append(f"  [red]{row['check']}[/]: {len(row['failures'])} failed, first {first['sample']}")
            lines.append(f"    {first['message']}")
    return "\n".join(lines)

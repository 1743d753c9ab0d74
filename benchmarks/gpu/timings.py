"""How long the ops take on a device, beside torch and the floor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.comparison import cases, number, time_case
from benchmarks.gpu.checks import chosen_device, lasting_error, one_line

Row = dict[str, Any]

LEAST_SHARE = 0.6
"""Of the floor, what a kernel is to reach."""

_KEPT = (
    *("op", "case", "ours_ms", "graph_ms", "peer", "peer_ms", "ratio", "bytes", "operations"),
    *("floor_ms", "share", "gigabytes_per_second", "gigaflops"),
)


def time_op(op: str, device_name: str, seconds: float) -> Iterator[list[Row]]:
    """Time an op case by case, and give a row per peer; where that fails, a row that says why.

    What a case reads stays in the device's caches where these hold it; the floor is then that of a copy as small.
    """
    device = chosen_device(device_name)
    for case in cases(op, device):
        try:
            rows = list(time_case(op, case, seconds, device))
        except Exception as error:
            yield [{"op": op, "case": case.name, "failed": one_line(error)}]
            if lasting_error(device) is not None:
                return
        else:
            reached = rows[0]["share"] >= LEAST_SHARE
            yield [{key: row[key] for key in _KEPT} | {"reaches_least_share": reached} for row in rows]


def show_timing(rows: list[Row]) -> str:
    """Give a line on a case."""
    row = rows[0]
    name = f"[bold]{row['op']}[/]" + (f": {row['case']}" if row["case"] else "")
    if "failed" in row:
        return f"{name}\n  [red]failed[/]: {row['failed']}"
    parts = [f"{number(row['ours_ms'])} ms"]
    if row["graph_ms"] is not None:
        parts.append(f"{number(row['graph_ms'])} ms in a graph")
    parts += [f"{row['ratio']:.2f} × {row['peer']}" for row in rows if row["peer"] is not None]
    colour, relation = ("green", "≥") if row["reaches_least_share"] else ("red", "<")
    share = f"[{colour}]{row['share']:.0%} of what the floor allows, {relation} {LEAST_SHARE:.0%}[/]"
    return f"{name}\n  {', '.join(parts)}, {share}"

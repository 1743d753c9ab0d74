"""``python -m benchmarks.ops [--op NAME] [--json FILE]``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from threadpoolctl import threadpool_limits

from benchmarks.comparison import OPS, Row, cases, number, time_case
from benchmarks.files import write_json


def main(
    op: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(OPS)}; all without it.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows to this file too.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of all who compete.")] = torch.get_num_threads(),
    seconds: Annotated[float, typer.Option(min=0, help="How long to time each case.")] = 5.0,
) -> None:
    """Time the native ops beside their peers, in one process and in turn; medians."""
    for name in set(op or []) - set(OPS):
        raise typer.BadParameter(f"no benchmark of an op {name!r}; there are {', '.join(OPS)}")
    torch.set_num_threads(threads)
    console = Console(highlight=False)
    rows = []
    for name in op or OPS:
        for case in cases(name):
            with threadpool_limits(threads):
                compared = list(time_case(name, case, seconds))
            show(compared, console)
            rows += compared
    if json_file is not None:
        write_json(json_file, rows)


def show(rows: list[Row], console: Console) -> None:
    """Print a case: what we take, and each peer beside it. Targets that are missed are red."""
    row = rows[0]
    console.print(f"[bold]{row['op']}[/]: {row['case']}")
    ours = f"ours {number(row['ours_ms'])} ms"
    if row["most_ms"] is not None:
        ours += _target(f"≤ {row['most_ms']:g} ms", row["ours_ms"] <= row["most_ms"])
    console.print(f"  {ours}, {row['share']:.0%} of what the floor allows{_explained(row)}")
    console.print(
        f"  floor {number(row['floor_ms'])} ms: copying at {row['gigabytes_per_second']:.1f} GB/s, "
        f"multiplying at {row['gigaflops']:.1f} GFLOP/s"
    )
    for row in rows:
        if row["peer"] is None:
            continue
        peer = f"  {row['peer']:<20} {number(row['peer_ms']):>8} ms  {row['ratio']:6.2f} ×"
        if row["least_ratio"] is not None:
            peer += _target(f"≥ {row['least_ratio']:g} ×", row["ratio"] >= row["least_ratio"])
        console.print(peer)
    console.print()


def _explained(row: Row) -> str:
    if row["share"] <= 1:
        return ""
    return f" ({row['faster_than_floor'] or '[red]the floor or the rates are wrong[/]'})"


def _target(target: str, met: bool) -> str:
    return f"  [{'green' if met else 'red'}](target {target}: {'met' if met else 'missed'})[/]"


typer.run(main)

"""``python -m benchmarks.ops [--op NAME] [--json FILE]``"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from threadpoolctl import threadpool_limits

import benchmarks.ops
from benchmarks.ops import Case
from benchmarks.timing import Rates, medians

OPS = sorted(
    module.name for module in pkgutil.iter_modules(benchmarks.ops.__path__) if module.name != "__main__"
)

Row = dict[str, Any]


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
        json_file.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def cases(op: str) -> Iterator[Case]:
    """What is timed of an op."""
    try:
        yield from importlib.import_module(f"benchmarks.ops.{op}").cases()
    except ModuleNotFoundError as error:
        raise SystemExit(f"error: {error.name} is not installed: pip install -e '.[bench]'") from None


def time_case(op: str, case: Case, seconds: float) -> Iterator[Row]:
    """Give a row per peer, and one without a peer where the case has none."""
    rates = Rates.measure(bytes=case.work.bytes)
    floor = case.work.seconds(rates)
    taken = medians({"ours": case.ours, **case.peers}, seconds=seconds)
    ours = taken["ours"]
    for peer in case.peers or [None]:
        time = None if peer is None else taken[peer]
        yield {
            "op": op,
            "case": case.name,
            "ours_ms": 1e3 * ours,
            "peer": peer,
            "peer_ms": None if time is None else 1e3 * time,
            "ratio": None if time is None else time / ours,
            "bytes": case.work.bytes,
            "operations": case.work.operations,
            "floor_ms": 1e3 * floor,
            "share": floor / ours,
            "gigabytes_per_second": rates.bytes_per_second / 1e9,
            "gigaflops": rates.operations_per_second / 1e9,
            "least_ratio": None if peer is None else case.least_ratio.get(peer),
            "most_ms": case.most_ms,
            "faster_than_floor": case.faster_than_floor,
        }


def show(rows: list[Row], console: Console) -> None:
    """Print a case: what we take, and each peer beside it. Targets that are missed are red."""
    row = rows[0]
    console.print(f"[bold]{row['op']}[/]: {row['case']}")
    ours = f"ours {_number(row['ours_ms'])} ms"
    if row["most_ms"] is not None:
        ours += _target(f"≤ {row['most_ms']:g} ms", row["ours_ms"] <= row["most_ms"])
    console.print(f"  {ours}, {row['share']:.0%} of what the floor allows{_explained(row)}")
    console.print(
        f"  floor {_number(row['floor_ms'])} ms: copying at {row['gigabytes_per_second']:.1f} GB/s, "
        f"multiplying at {row['gigaflops']:.1f} GFLOP/s"
    )
    for row in rows:
        if row["peer"] is None:
            continue
        peer = f"  {row['peer']:<20} {_number(row['peer_ms']):>8} ms  {row['ratio']:6.2f} ×"
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


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if value < 0.1 else f"{value:.2f}"


typer.run(main)

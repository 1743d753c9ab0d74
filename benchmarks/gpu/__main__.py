"""``python -m benchmarks.gpu [--op NAME] [--part PART] [--json FILE]``"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.gpu import machine
from benchmarks.gpu.report import Results
from benchmarks.gpu.session import RUNS, Session
from metarec.testing.ops import OPS


class Part(StrEnum):
    """What can be done alone."""

    BUILD = "build"
    CHECK = "check"
    TIME = "time"


def main(
    op: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join([*OPS, RUNS])}; all without it.")
    ] = None,
    part: Annotated[list[Part] | None, typer.Option(help="Only this; all without it.")] = None,
    json_file: Annotated[Path, typer.Option("--json", help="Where the results go, after each op.")] = Path(
        "benchmarks/results/gpu.json"
    ),
    device: Annotated[
        str, typer.Option(help="cuda, cuda:1, …; on cpu what concerns CUDA does not apply.")
    ] = "cuda",
    seconds: Annotated[float, typer.Option(min=0, help="How long to time each case.")] = 2.0,
) -> None:
    """Build the native ops for the GPU that is here, and check and time each of them on it.

    Ends with 0 if all checks passed, with 1 if one failed, with 2 if there is nothing to run on.
    """
    chosen, parts = op or [*OPS, RUNS], part or list(Part)
    for name in set(chosen) - {*OPS, RUNS}:
        raise typer.BadParameter(f"no op {name!r}; there are {', '.join([*OPS, RUNS])}")
    console = Console(highlight=False)
    if Part.BUILD in parts and machine.can_build(device):
        console.print("metarec has no CUDA kernels yet: building them")
        machine.build()
    lacks = machine.missing(device)
    if lacks is not None:
        console.print(f"error: {lacks}", markup=False, soft_wrap=True)
        raise typer.Exit(2)
    results = Results(machine.describe(device))
    console.print(f"{results.machine['device']}, torch {results.machine['torch']}", markup=False)
    session = Session(device, results, json_file, console)
    if Part.CHECK in parts:
        modules = {name: f"metarec.testing.ops.{name}" for name in OPS if name in chosen}
        session.check(modules, runs=RUNS in chosen)
    if Part.TIME in parts:
        session.time([name for name in OPS if name in chosen], seconds)
    results.complete = True
    results.write(json_file)
    console.print(f"The results are in {json_file}.", markup=False)
    raise typer.Exit(0 if results.passed else 1)


if __name__ == "__main__":
    typer.run(main)

"""``python -m benchmarks.data [--json FILE]``: reading 25 million ratings from CSV, beside pandas."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

CORES = 2
MOST_SECONDS = 20.0
MOST_GIGABYTES = 2.5

FEW = 1_000
USERS, ITEMS = 162_541, 59_047
"""As many as MovieLens 25M has."""

T = TypeVar("T")


def metarec(path: Path) -> int:
    """A data set: columns parsed, ids numbered, ratings checked, duplicates looked for, the scale found."""
    from metarec import load_dataset

    dataset = load_dataset("table", path=path, user="userId", item="movieId", time="timestamp")
    return len(dataset)


def pandas_read_csv(path: Path) -> int:
    """The columns, as pandas finds their types."""
    import pandas

    return len(pandas.read_csv(path))


def pandas_typed_and_numbered(path: Path) -> int:
    """The columns with the types given, and the ids numbered."""
    import pandas

    types = {"userId": "int32", "movieId": "int32", "rating": "float32", "timestamp": "int64"}
    frame = pandas.read_csv(path, dtype=types)
    for name in ("userId", "movieId"):
        frame[name] = pandas.factorize(frame[name], sort=True)[0]
    return len(frame)


PEERS = {"pandas.read_csv": pandas_read_csv, "pandas, types given, ids numbered": pandas_typed_and_numbered}


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows to this file too.")] = None,
    ratings: Annotated[int, typer.Option(min=1000, help="How many to generate.")] = 25_000_000,
    rounds: Annotated[int, typer.Option(min=1, help="How often each reads the file, in turn.")] = 3,
) -> None:
    """Read a generated file on two cores, each time in a process of its own; median time and greatest memory."""
    console = Console(highlight=False)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ("metarec", *PEERS)}
    with TemporaryDirectory() as folder:
        few, many = Path(folder) / "few.csv", Path(folder) / "many.csv"
        apart(generate, few, FEW)
        apart(generate, many, ratings)
        for _ in range(rounds):
            for name, load in {"metarec": metarec, **PEERS}.items():
                taken[name].append(apart(measure, load, few, many, ratings))
    seconds = {name: statistics.median(second for second, _ in each) for name, each in taken.items()}
    gigabytes = {name: max(gigabyte for _, gigabyte in each) for name, each in taken.items()}
    rows = [
        {
            "ratings": ratings,
            "ours_s": seconds["metarec"],
            "ours_gb": gigabytes["metarec"],
            "peer": peer,
            "peer_s": seconds[peer],
            "peer_gb": gigabytes[peer],
            "ratio": seconds[peer] / seconds["metarec"],
            "most_s": MOST_SECONDS,
            "most_gb": MOST_GIGABYTES,
        }
        for peer in PEERS
    ]
    show(f"{ratings:,} ratings from CSV", seconds, gigabytes, console)
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def apart(call: Callable[..., T], *arguments: Any) -> T:
    """What a call gives in a process of its own, which so starts with its own peak of memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


def generate(path: Path, ratings: int) -> None:
    """Write a file like MovieLens 25M's, by user, in which no user rates an item twice."""
    import numpy as np
    import polars as pl

    random = np.random.default_rng(0)
    user = np.sort(random.integers(USERS, size=ratings, dtype=np.int32))
    place = np.arange(ratings) - np.searchsorted(user, user)
    item = (user * 7919 + place * 20_011) % ITEMS  # 20,011 and ITEMS have no common factor
    columns = {
        "userId": user + 1,
        "movieId": item * 3 + 1,
        "rating": random.integers(1, 11, ratings) / 2,
        "timestamp": random.integers(789_652_009, 1_574_327_703, ratings),
    }
    pl.DataFrame(columns).write_csv(path)


def measure(load: Callable[[Path], int], few: Path, many: Path, ratings: int) -> tuple[float, float]:
    """Seconds that it takes once libraries are there, and gigabytes that this process had at most, with libraries."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    load(few)
    begin = time.perf_counter()
    found = load(many)
    seconds = time.perf_counter() - begin
    assert found == ratings
    return seconds, peak_bytes() / 1e9


def peak_bytes() -> int:
    """The most memory that this program had. Linux counts in getrusage what it was forked from as well."""
    status = Path("/proc/self/status")
    if status.exists():
        (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii"))
        return int(peak) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def show(title: str, seconds: dict[str, float], gigabytes: dict[str, float], console: Console) -> None:
    """Print a row each; ours is red where a target is missed."""
    met = seconds["metarec"] <= MOST_SECONDS and gigabytes["metarec"] <= MOST_GIGABYTES
    table = Table("", "seconds", "peak GB", title=f"{title} (≤ {MOST_SECONDS:g} s, ≤ {MOST_GIGABYTES:g} GB)")
    for name in seconds:
        style = ("green" if met else "red") if name == "metarec" else None
        table.add_row(name, f"{seconds[name]:.1f}", f"{gigabytes[name]:.2f}", style=style)
    console.print(table)


if __name__ == "__main__":
    typer.run(main)

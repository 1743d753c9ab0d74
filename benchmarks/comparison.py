"""The cases of the ops, timed beside their peers and their floor, on any device."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import torch

import benchmarks.ops
from benchmarks.ops import Case
from benchmarks.timing import CPU, Call, Rates, medians

OPS = sorted(
    module.name for module in pkgutil.iter_modules(benchmarks.ops.__path__) if module.name != "__main__"
)

Row = dict[str, Any]


def cases(op: str, device: torch.device = CPU) -> Iterator[Case]:
    """What is timed of an op."""
    try:
        yield from importlib.import_module(f"benchmarks.ops.{op}").cases(device)
    except ModuleNotFoundError as error:
        raise SystemExit(f"error: {error.name} is not installed: pip install -e '.[bench]'") from None


def time_case(op: str, case: Case, seconds: float, device: torch.device = CPU) -> Iterator[Row]:
    """Give a row per peer, and one without a peer where the case has none.

    On CUDA we are timed as a graph too: what the device takes, without the way there through Python. The share of the
    floor is that of the faster one.
    """
    rates = Rates.measure(device, bytes=case.work.bytes)
    floor = case.work.seconds(rates)
    graph = {"graph": captured(case.ours)} if device.type == "cuda" else {}
    taken = medians({"ours": case.ours, **graph, **case.peers}, seconds=seconds, device=device)
    ours, by_graph = taken["ours"], taken.get("graph")
    for peer in case.peers or [None]:
        time = None if peer is None else taken[peer]
        yield {
            "op": op,
            "case": case.name,
            "ours_ms": 1e3 * ours,
            "graph_ms": None if by_graph is None else 1e3 * by_graph,
            "peer": peer,
            "peer_ms": None if time is None else 1e3 * time,
            "ratio": None if time is None else time / ours,
            "bytes": case.work.bytes,
            "operations": case.work.operations,
            "floor_ms": 1e3 * floor,
            "share": floor / (ours if by_graph is None else min(ours, by_graph)),
            "gigabytes_per_second": rates.bytes_per_second / 1e9,
            "gigaflops": rates.operations_per_second / 1e9,
            "least_ratio": None if peer is None else case.least_ratio.get(peer),
            "most_ms": case.most_ms,
            "faster_than_floor": case.faster_than_floor,
        }


def captured(call: Call) -> Call:
    """Give the replay of a CUDA graph of a call."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):  # what is done once only, it does before
        call()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()

    def replay() -> object:
        graph.replay()
        return results  # whose memory the graph writes to

    return replay


def number(value: float | None) -> str:
    """Milliseconds as people read them."""
    return "" if value is None else f"{value:.4f}" if value < 0.1 else f"{value:.2f}"

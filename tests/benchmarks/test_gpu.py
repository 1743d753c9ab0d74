"""The benchmark for a GPU, on the CPU: what needs CUDA does not apply there, or is played by a stand-in."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typer
from rich.console import Console

from metarec.config import RunConfig
from metarec.experiment import Experiment
from metarec.testing.ops import OPS
from metarec.testing.ops.cosine_scores import samples as samples_of_scores
from metarec.testing.pretend_device import pretend_device

ROOT = Path(__file__).parents[2]

SUMS = """
import itertools, os, signal
from dataclasses import dataclass
import torch
from metarec.testing.ops import Sample

calls = itertools.count()

@dataclass(frozen=True)
class Sum(Sample):
    count: int

    def arguments(self):
        return [torch.arange(float(self.count))]

    def call(self, numbers):
        {bug}
        return {{"sum": numbers.sum()}}

    def expected(self, numbers):
        return {{"sum": numbers.double().sum()}}

    def tolerance(self, name):
        return 1e-6

def samples():
    return [Sum(0), Sum(3), Sum(4)]
"""


@pytest.fixture(scope="module")
def gpu() -> Iterator[SimpleNamespace]:
    names = "checks", "isolated", "machine", "report", "session", "timings", "__main__"
    with pytest.MonkeyPatch.context() as patch:
        # Benchmarks are not installed; last, so that the metarec that is comes before the one beside them.
        patch.setattr(sys, "path", [*sys.path, str(ROOT)])
        modules = {name: importlib.import_module(f"benchmarks.gpu.{name}") for name in names}
        yield SimpleNamespace(**modules, program=modules["__main__"])


@pytest.fixture
def ops(gpu, monkeypatch: pytest.MonkeyPatch):
    """The cases of the ops made small, on a machine that has none of the peers of the CPU."""
    sizes = {
        "cosine_scores": {"USERS": 30, "ITEMS": 20, "PAIRS": 50},
        "cosine_sgd_epoch_": {"EPOCHS": 1, "BATCH": 64},
        "cosine_topk": {"ITEMS": 50, "QUERIES": 5},
        "embedding_update_": {"ROWS": 100, "ENTRIES": 50},
        "gaussian_posterior": {"TASKS": 3, "TASKS_OF_A_GPU": 5},
        "inner_loop": {"WIDTH": 5, "HIDDEN": 4, "ALIKE": 3, "RAGGED": 4},
    }
    modules = {op: importlib.import_module(f"benchmarks.ops.{op}") for op in OPS}
    for op, module in modules.items():
        for name, size in sizes[op].items():
            monkeypatch.setattr(module, name, size)
    for name in ("faiss", "fbgemm_gpu", "implicit", "pandas", "surprise", "threadpoolctl"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delenv("METAREC_TEST_DATA", raising=False)
    drawn = modules["cosine_sgd_epoch_"].drawn
    monkeypatch.setattr(modules["cosine_sgd_epoch_"], "drawn", lambda *_: drawn(30, 20, 200))
    rates = gpu.timings.time_case.__globals__["Rates"]
    monkeypatch.setattr(rates, "measure", lambda device, bytes: rates(1e9, 1e9))
    return modules


@pytest.fixture
def sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that makes a module of samples, with a bug in what they call."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name: str, bug: str = "pass") -> str:
        module = f"{name}_of_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{module}.py").write_text(SUMS.format(bug=bug))
        return module

    return make


def failures(outcomes) -> dict[str, str]:
    return {
        f"{outcome.sample}: {outcome.check}": outcome.message
        for outcome in outcomes
        if outcome.passed is False
    }


@pytest.mark.parametrize("op", OPS)
def test_samples_of_each_op_pass_and_what_needs_cuda_does_not_apply(gpu, op):
    outcomes = list(islice(gpu.checks.check_op(f"metarec.testing.ops.{op}", "cpu"), 21))
    assert not failures(outcomes)
    applied = {outcome.check: outcome.passed for outcome in outcomes if outcome.check is not None}
    assert applied == {check.name: None if check.of_cuda else True for check in gpu.checks.CHECKS}


@pytest.mark.parametrize(
    ("bug", "failed"),
    [
        ("numbers = numbers[1:] * 1.001", {"equals the reference": "AssertionError: sum: "}),
        ("if self.count: raise ValueError('no kernel')", {"equals the reference": "ValueError: no kernel"}),
        (
            "numbers = numbers + 1e-6 * (next(calls) % 2)",
            {"gives the same bits again": "AssertionError: sum differs"},
        ),
        ("numbers *= 1", {}),
    ],
)
def test_an_op_that_is_wrong_fails(gpu, sums, bug, failed):
    found = failures(gpu.checks.check_op(sums("planted", bug), "cpu"))
    assert found.keys() == {f"count={count}: {check}" for check in failed for count in (3, 4)}
    for message, expected in zip(found.values(), [*failed.values()] * 2, strict=False):
        assert message.startswith(expected)


def test_an_op_that_changes_its_arguments_fails(gpu, sums):
    found = failures(gpu.checks.check_op(sums("planted_changing", "numbers.copy_(numbers.roll(1))"), "cpu"))
    assert list(found) == [f"count={count}: leaves its arguments as they are" for count in (3, 4)]


def test_a_crash_stops_no_other_op_and_the_file_has_what_was_found(gpu, sums, tmp_path):
    crash = (
        "if self.count == 4: print('kernel.cu:7: wrong', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"
    )
    file, screen = tmp_path / "new" / "gpu.json", io.StringIO()
    results = gpu.report.Results({"device": "none"})
    session = gpu.session.Session("cpu", results, file, Console(file=screen, width=200))
    session.check({"crashing": sums("planted_crash", crash), "right": sums("planted_right")}, runs=False)
    assert not results.passed
    found = json.loads(file.read_text())
    assert found["complete"] is False
    rows = {(row["op"], row["check"]): row for row in found["checks"]}
    assert rows["crashing", "equals the reference"]["passed"] == 2
    (failure,) = rows["crashing", "runs to the end"]["failures"]
    assert failure == {"sample": "count=4", "message": "SIGSEGV: kernel.cu:7: wrong"}
    assert (
        rows["right", "equals the reference"]["passed"] == 3
        and not rows["right", "runs to the end"]["failures"]
    )
    assert rows["right", "runs in a CUDA graph"] == {
        "op": "right",
        "check": "runs in a CUDA graph",
        "passed": 0,
        "not_applicable": 3,
        "failures": [],
    }
    shown = screen.getvalue()
    assert "crashing: 6 of 7 checks passed, 6 not applicable" in shown
    assert "runs to the end: 1 failed, first count=4\n    SIGSEGV: kernel.cu:7" in shown
    assert "right: 10 of 10 checks passed, 9 not applicable" in shown


def test_what_hangs_is_ended(gpu):
    with pytest.raises(gpu.isolated.Died, match="nothing for 2 s"):
        list(gpu.isolated.isolated(map, time.sleep, [0, 3600], patience=2))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the checks call of CUDA, played by the CPU: a graph's replays do what its `replay` says."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    graph = SimpleNamespace(replay=lambda: None)
    modes: list[str] = []
    played = {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda chosen: contextlib.nullcontext(),
        "synchronize": lambda: None,
        "_sleep": lambda cycles: None,
        "CUDAGraph": lambda: graph,
        "graph": lambda made: contextlib.nullcontext(),
        "set_sync_debug_mode": modes.append,
    }
    for name, value in played.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return SimpleNamespace(graph=graph, modes=modes)


def check_scores(gpu, name: str, *, call=None) -> None:
    """Make a check on a sample, whose later calls are changed to `call`."""
    sample = next(sample for sample in samples_of_scores() if sample.pairs == 40)
    arguments = sample.arguments()
    results = sample.call(*arguments)
    if call is not None:
        object.__setattr__(sample, "call", lambda *given: call(type(sample).call(sample, *given)))
    next(check for check in gpu.checks.CHECKS if check.name == name).holds(sample, arguments, results)


def off_by_one(results):
    return results | {"scores": results["scores"] + 1}


@pytest.mark.parametrize("name", ["waits for nothing", "runs on another stream", "gives the same bits again"])
def test_results_that_differ_are_found(gpu, cuda, name):
    check_scores(gpu, name)
    with pytest.raises(AssertionError, match="scores differs"):
        check_scores(gpu, name, call=off_by_one)
    assert cuda.modes in ([], ["error", "default"] * 2)


def test_a_graph_must_compute_again_what_was_captured(gpu, cuda):
    kept = {}

    def keep(results):
        kept.update({name: (value, value.clone()) for name, value in results.items()})
        return results

    def replay():
        for value, before in kept.values():
            value.copy_(before)

    cuda.graph.replay = replay
    check_scores(gpu, "runs in a CUDA graph", call=keep)
    cuda.graph.replay = lambda: None
    with pytest.raises(AssertionError, match="scores differs"):
        check_scores(gpu, "runs in a CUDA graph")


@pytest.fixture
def small_run(gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole runs on few ratings."""
    random = np.random.default_rng(0)
    rated = [
        f"u{u},i{i},{random.integers(1, 6)}" for u in range(30) for i in range(20) if random.random() < 0.6
    ]
    file = tmp_path / "ratings.csv"
    file.write_text("\n".join(["user,item,rating", *rated]) + "\n")
    dataset = {"name": "table", "options": {"path": str(file)}}
    monkeypatch.setattr(gpu.checks, "RUN", {**gpu.checks.RUN, "dataset": dataset})
    monkeypatch.setattr(gpu.checks, "RUNS", {"mf": gpu.checks.RUNS["mf"]})


def test_whole_runs_are_as_on_the_cpu(gpu, small_run):
    with pretend_device() as device:
        outcomes = [outcome for outcome in gpu.checks.check_runs(str(device)) if outcome.check]
    assert [(outcome.sample, outcome.passed, outcome.message) for outcome in outcomes] == [("mf", True, "")]
    assert all(outcome.passed is None for outcome in gpu.checks.check_runs("cpu"))


def test_whole_runs_have_options_that_there_are(gpu):
    for name, options in gpu.checks.RUNS.items():
        Experiment(RunConfig.of({**gpu.checks.RUN, "algorithms": [{"name": name, "options": options}]}))


def test_a_whole_run_that_is_not_as_on_the_cpu_fails(gpu, monkeypatch):
    metrics = {"cuda": {"new-user, 3, rmse": 0.91}, "cpu": {"new-user, 3, rmse": 0.90}}
    monkeypatch.setattr(gpu.checks, "_metrics", lambda name, options, device: metrics[device])
    found = failures(gpu.checks.check_runs("cuda"))
    assert found["mf: as on the CPU"] == "AssertionError: new-user, 3, rmse: 0.91, on the CPU 0.9"


def test_results_are_written_whole_or_not_at_all(gpu, tmp_path):
    file = tmp_path / "gpu.json"
    gpu.report.Results({"device": "first"}).write(file)
    with pytest.raises(TypeError):
        gpu.report.Results({"device": object()}).write(file)
    assert json.loads(file.read_text())["machine"] == {"device": "first"}
    assert list(tmp_path.iterdir()) == [file]


def run(gpu, tmp_path: Path, **options) -> tuple[int, str]:
    """Run the program, and give its exit code and the file."""
    file = tmp_path / "gpu.json"
    with pytest.raises(typer.Exit) as ended:
        gpu.program.main(**{"op": None, "part": None, "json_file": file, "device": "cpu", **options})
    return ended.value.exit_code, file.read_text() if file.exists() else ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(gpu, tmp_path, capsys):
    assert run(gpu, tmp_path, device="cuda") == (2, "")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("error: device 'cuda' cannot be used here: ")


def test_without_native_ops_one_line_says_so(gpu, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("metarec.build_info", lambda: {"native": False, "cuda": False})
    assert run(gpu, tmp_path) == (2, "")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("error: metarec is built without its native ops")


@pytest.mark.parametrize("bad", [[], [{"sample": "s", "message": "m"}]])
def test_the_exit_code_says_whether_all_passed(gpu, tmp_path, monkeypatch, bad):
    def check(session, modules, *, runs):
        assert list(modules) == ["inner_loop"] and not runs
        session.results.checks.append({"op": "inner_loop", "check": "c", "failures": bad})

    monkeypatch.setattr(gpu.program.Session, "check", check)
    code, text = run(gpu, tmp_path, op=["inner_loop"], part=["check"])
    assert code == bool(bad)
    found = json.loads(text)
    assert found["complete"] is True and found["machine"]["torch"] == torch.__version__


def test_kernels_are_built_where_only_they_are_missing(gpu, monkeypatch):
    started = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("metarec.build_info", lambda: {"native": True, "cuda": False})
    monkeypatch.setattr(gpu.machine.shutil, "which", lambda *_, **__: "/usr/bin/nvcc")
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)

    def pip(command, *, env, check):
        assert env["METAREC_CUDA"] == "1" and env["TORCH_CUDA_ARCH_LIST"] == "9.0"
        assert {"--no-build-isolation", "--no-deps", "--no-index"} < set(command) and command[-1] == str(ROOT)
        return SimpleNamespace(returncode=int("fails" in started))

    monkeypatch.setattr(gpu.machine.subprocess, "run", pip)
    monkeypatch.setattr(gpu.machine.os, "execve", lambda *given: started.append(given))
    assert gpu.machine.can_build("cuda") and not gpu.machine.can_build("cpu")
    gpu.machine.build()
    ((program, arguments, environment),) = started
    assert program == sys.executable and arguments == sys.orig_argv
    monkeypatch.setenv(gpu.machine.BUILT, environment[gpu.machine.BUILT])
    assert not gpu.machine.can_build("cuda")  # once only
    started.append("fails")
    with pytest.raises(SystemExit, match="2"):
        gpu.machine.build()


SPARSE = ("torch SparseAdam", "torch coalesce + index_add")
"""Peers with sparse tensors, which the pretended device has not."""


@pytest.mark.parametrize("op", OPS)
def test_cases_run_on_a_device_without_what_runs_on_cpus_alone(ops, op):
    with pretend_device() as device:
        cases = list(ops[op].cases(device))
        assert cases
        for case in cases:
            for call in (case.ours, *(call for name, call in case.peers.items() if name not in SPARSE)):
                call()


def test_timings_are_beside_peers_and_the_floor(gpu, ops):
    with_peer, inside, _ = gpu.timings.time_op("gaussian_posterior", "cpu", 0.0)
    assert [row["peer"] for row in with_peer] == ["NumPy loop", "torch batched"]
    assert [row["peer"] for row in inside] == [None]
    row = with_peer[1]
    assert row["ratio"] == pytest.approx(row["peer_ms"] / row["ours_ms"])
    assert row["floor_ms"] == pytest.approx(1e3 * max(row["bytes"], row["operations"]) / 1e9)
    assert row["share"] == pytest.approx(row["floor_ms"] / row["ours_ms"]) and row["graph_ms"] is None
    assert row["reaches_least_share"] == (row["share"] >= 0.6)
    row |= {"ours_ms": 2.0, "graph_ms": 1.5, "share": 0.7, "ratio": 12.0, "reaches_least_share": True}
    assert "2.00 ms, 1.50 ms in a graph, 12.00 × torch batched, [green]70% of what the floor" in (
        gpu.timings.show_timing([row])
    )


def test_a_case_that_fails_is_said_to_and_stops_no_other(gpu, ops, monkeypatch):
    def fail(*_):
        raise RuntimeError("no\nkernel")

    monkeypatch.setattr(ops["gaussian_posterior"], "torch_batched", fail)
    first, second, third = gpu.timings.time_op("gaussian_posterior", "cpu", 0.0)
    assert first == [
        {"op": "gaussian_posterior", "case": first[0]["case"], "failed": "RuntimeError: no kernel"}
    ]
    assert "failed" not in second[0] and "failed" in third[0]
    assert gpu.timings.show_timing(first).endswith("[red]failed[/]: RuntimeError: no kernel")


def test_a_crash_while_timing_stops_no_other_op(gpu, tmp_path, monkeypatch):
    timed = {"op": "fine", "case": "c", "ours_ms": 1.0, "graph_ms": None, "peer": None, "share": 0.5}

    def isolated(work, op, device, seconds):
        assert (work, device, seconds) == (gpu.timings.time_op, "cpu", 1.0)
        if op == "crashing":
            raise gpu.isolated.Died("SIGSEGV")
        yield [timed | {"reaches_least_share": False}]

    monkeypatch.setattr(gpu.session, "isolated", isolated)
    results, file = gpu.report.Results({}), tmp_path / "gpu.json"
    session = gpu.session.Session("cpu", results, file, Console(file=io.StringIO()))
    session.time(["crashing", "fine"], 1.0)
    crashed, fine = json.loads(file.read_text())["timings"]
    assert crashed == {"op": "crashing", "case": None, "failed": "SIGSEGV"} and fine["ours_ms"] == 1.0
    assert not results.passed


def test_a_call_that_is_captured_is_replayed(gpu, cuda):
    calls, replays = [], []
    cuda.graph.replay = lambda: replays.append(1)
    replay = gpu.timings.time_case.__globals__["captured"](lambda: calls.append(1))
    assert len(calls) == 2 and not replays
    replay(), replay()
    assert len(calls) == 2 and len(replays) == 2

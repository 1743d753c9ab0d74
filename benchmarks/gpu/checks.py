"""What is checked of an op on a device, sample by sample, and of whole runs."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarec.config import RunConfig
from metarec.evaluation import support_name
from metarec.experiment import run_experiment
from metarec.testing.ops import Sample

Results = dict[str, Tensor]

TO_THE_END = "runs to the end"
"""The check that fails where the rest of them cannot be made."""

RUNS: dict[str, dict[str, Any]] = {
    "bayesian": {},
    "maml": {"training": {"epochs": 2}},
    "mf": {"descent": {"epochs": 2}},
}
"""Algorithms that are fitted on the device and on the CPU: by posteriors, by inner loops and by epochs; few of them,
since training amplifies that sums have another order."""
RUN: dict[str, Any] = {"scenarios": ["new-user"], "metrics": ["rmse", "nll"]}
RUN_TOLERANCE = 5e-3
"""How far a metric may then be from the CPU's, relatively."""


@dataclass(frozen=True)
class Outcome:
    """What a check of a sample has found."""

    sample: str
    check: str | None = None
    """None where the sample begins."""
    passed: bool | None = None
    """None where the check does not apply: to the device, or to a call that is documented to wait for it."""
    message: str = ""


def check_op(module: str, device_name: str) -> Iterator[Outcome]:
    """Check all samples of a module such as ``metarec.testing.ops.inner_loop``."""
    device = chosen_device(device_name)
    for sample in importlib.import_module(module).samples():
        name = str(sample)
        yield Outcome(name)
        try:
            arguments = [tensor.to(device) for tensor in sample.arguments()]
            results = sample.call(*arguments)
        except Exception as error:
            yield Outcome(name, CHECKS[0].name, False, one_line(error))
        else:
            for check in CHECKS:
                yield _outcome(check, sample, arguments, results)
        error = lasting_error(device)
        if error is not None:
            yield Outcome(name, TO_THE_END, False, error)
            return


def chosen_device(name: str) -> torch.device:
    """Give a device, which becomes the current one where it is a GPU."""
    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def lasting_error(device: torch.device) -> str | None:
    """Give the error that every call on the device raises from now on, if there is one."""
    if device.type == "cuda":
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            return one_line(error)
    return None


def check_runs(device_name: str) -> Iterator[Outcome]:
    """Fit and evaluate algorithms on the device and on the CPU, and compare all metrics."""
    for name, options in RUNS.items():
        yield Outcome(name)
        if device_name == "cpu":
            yield Outcome(name, "as on the CPU")
            continue
        try:
            found, expected = (_metrics(name, options, device) for device in (device_name, "cpu"))
            _assert_alike(found, expected)
        except Exception as error:
            yield Outcome(name, "as on the CPU", False, one_line(error))
        else:
            yield Outcome(name, "as on the CPU", True)


def _metrics(algorithm: str, options: dict[str, Any], device: str) -> dict[str, float]:
    chosen = {"name": algorithm, "options": options}
    report = run_experiment(RunConfig.of({**RUN, "algorithms": [chosen, "global-mean"], "device": device}))
    return {
        f"{row['scenario']}, {support_name(row['support'])}, {row['metric']}": row["value"]
        for row in report.rows
        if row["algorithm"] == algorithm
    }


def _assert_alike(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found.keys() == expected.keys() and expected
    for cell, value in expected.items():
        assert math.isclose(found[cell], value, rel_tol=RUN_TOLERANCE), (
            f"{cell}: {found[cell]:.6g}, on the CPU {value:.6g}"
        )


@dataclass(frozen=True)
class Check:
    """Something that must hold for a sample."""

    name: str
    holds: Callable[[Sample, list[Tensor], Results], None]
    """Raises where it does not, of arguments on a device and the results of a first call."""
    of_cuda: bool = False
    of_waiting: bool = True
    """Whether it is for calls too that wait for the device."""


def _outcome(check: Check, sample: Sample, arguments: list[Tensor], results: Results) -> Outcome:
    device = arguments[0].device
    if (check.of_cuda and device.type != "cuda") or (sample.waits and not check.of_waiting):
        return Outcome(str(sample), check.name)
    try:
        check.holds(sample, arguments, results)
    except Exception as error:
        return Outcome(str(sample), check.name, False, one_line(error))
    return Outcome(str(sample), check.name, True)


def _equals_reference(sample: Sample, _: list[Tensor], results: Results) -> None:
    sample.check(results)


def _keeps_arguments(sample: Sample, arguments: list[Tensor], _: Results) -> None:
    drawn = {f"argument {place}": tensor for place, tensor in enumerate(sample.arguments())}
    _assert_same(dict(zip(drawn, arguments, strict=True)), drawn)


def _gives_the_same_again(sample: Sample, arguments: list[Tensor], results: Results) -> None:
    _assert_same(sample.call(*arguments), results)


def _runs_in_a_graph(sample: Sample, arguments: list[Tensor], results: Results) -> None:
    with torch.cuda.stream(_stream_after_current()):
        sample.call(*arguments)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sample.call(*arguments)
    for _ in range(2):
        for value in captured.values():
            value.fill_(-7)  # which a replay that does nothing leaves
        graph.replay()
        _assert_same(captured, results)


def _waits_for_nothing(sample: Sample, arguments: list[Tensor], results: Results) -> None:
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = sample.call(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    _assert_same(found, results)


def _runs_on_another_stream(sample: Sample, arguments: list[Tensor], results: Results) -> None:
    stream = _stream_after_current()
    torch.cuda._sleep(10_000_000)  # some milliseconds, by which work on the wrong stream comes too late
    with torch.cuda.stream(stream):
        found = {name: value.cpu() for name, value in sample.call(*arguments).items()}
    _assert_same(found, results)


def _stream_after_current() -> torch.cuda.Stream:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    return stream


def _assert_same(found: Results, expected: Results) -> None:
    for name, value in expected.items():
        assert torch.equal(_bits(found[name]), _bits(value)), f"{name} differs"


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def one_line(error: Exception) -> str:
    """Say what went wrong."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}"[:300]


CHECKS = (
    Check("equals the reference", _equals_reference),
    Check("gives the same bits again", _gives_the_same_again),
    Check("leaves its arguments as they are", _keeps_arguments),
    Check("runs in a CUDA graph", _runs_in_a_graph, of_cuda=True, of_waiting=False),
    Check("waits for nothing", _waits_for_nothing, of_cuda=True, of_waiting=False),
    Check("runs on another stream", _runs_on_another_stream, of_cuda=True),
)

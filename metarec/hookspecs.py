"""Every way to extend metarec, on one screen.

A plugin is a module (or object) with functions of these names, marked by `hookimpl`. Each `register_*` hook is
handed a `register` callable, to be called once per thing: ``register(MyAlgorithm)``; the thing's `name` is what
users type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from metarec.config import RunConfig
    from metarec.data import Dataset, Reader
    from metarec.evaluation import Metric, Report, Reporter
    from metarec.features import Encoder
    from metarec.learning import Algorithm
    from metarec.tasks import Protocol

hookspec = pluggy.HookspecMarker("metarec")
hookimpl = pluggy.HookimplMarker("metarec")


@hookspec
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Add algorithms: classes that fit across tasks and adapt to one."""


@hookspec
def register_metrics(register: Callable[[type[Metric]], None]) -> None:
    """Add metrics: classes that score the predictions of a batch of tasks."""


@hookspec
def register_datasets(register: Callable[[type[Reader]], None]) -> None:
    """Add data sets: classes that read one from a path, or bring their own."""


@hookspec
def register_protocols(register: Callable[[type[Protocol]], None]) -> None:
    """Add protocols: classes that turn a data set and a seed into a training set and tasks by scenario."""


@hookspec
def register_encoders(register: Callable[[type[Encoder]], None]) -> None:
    """Add encoders: classes that turn one attribute into features."""


@hookspec
def register_reporters(register: Callable[[type[Reporter]], None]) -> None:
    """Add reporters: classes that write a finished report."""


@hookspec
def register_commands(register: Callable[[Callable[..., Any]], None]) -> None:
    """Add sub-commands of `metarec`: typed functions, as typer takes them."""


@hookspec(historic=True)
def configure(config: RunConfig) -> None:
    """See the validated `config` of a run before it starts; late plugins are told as well."""


@hookspec
def before_fit(algorithm: Algorithm, train: Dataset) -> None:
    """See `algorithm` and its training set `train` before it fits."""


@hookspec
def after_epoch(algorithm: Algorithm, epoch: int, values: Mapping[str, float]) -> None:
    """Follow the training of `algorithm`: the `values` that it measured after the pass number `epoch`."""


@hookspec
def after_fit(algorithm: Algorithm, train: Dataset) -> None:
    """See `algorithm`, fitted on `train`."""


@hookspec
def after_evaluate(report: Report) -> None:
    """See the finished `report` before the reporters write it."""

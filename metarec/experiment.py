"""One run, from a configuration to a report: read, split, fit, evaluate, write."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from metarec import __version__, artifact, atomic
from metarec.config import Choice, RunConfig
from metarec.data import Dataset, Reader
from metarec.device import usable_device
from metarec.errors import ConfigError, MetarecError, unknown_name
from metarec.evaluation import Evaluation, Report, Reporter, Row, compare, create_metrics, evaluate
from metarec.learning import Algorithm, Progress, Run, Silent
from metarec.pluginmanager import PluginManager, Registry, plugin_manager
from metarec.serving import Recommender
from metarec.tasks import SCENARIOS, Protocol, Split

DEFAULT_ALGORITHM = "bayesian"

T = TypeVar("T")


def load_dataset(name: str, **options: Any) -> Dataset:
    """Read a data set: ``load_dataset("complete-journey")``, ``load_dataset("movielens", path="ml-1m")``.

    Raises
    ------
    ConfigError
        No such data set or option (with the nearest right one).
    DataError
        Its files cannot be read; one line says where and why.
    """
    reader: Reader = plugin_manager().datasets.create(name, **options)
    return reader.read()


def split(dataset: Dataset, protocol: str = "cold-start", *, seed: int = 0, **options: Any) -> Split:
    """Split a data set into what is known and tasks of what is new.

    Raises
    ------
    ConfigError
        No such protocol or option (with the nearest right one).
    DataError
        The data set lacks what the protocol needs.
    """
    splitter: Protocol = plugin_manager().protocols.create(protocol, **options)
    return splitter.split(dataset, seed=seed)


def create_algorithm(name: str = DEFAULT_ALGORITHM, **options: Any) -> Algorithm:
    """An algorithm, not yet fitted: ``create_algorithm("bayesian", rank=32)``.

    Raises
    ------
    ConfigError
        No such algorithm or option (with the nearest right one), a wrong type, or a value out of range.
    """
    algorithm: Algorithm = plugin_manager().algorithms.create(name, **options)
    return algorithm


def run_experiment(
    config: RunConfig, *, plugins: PluginManager | None = None, progress: Progress = Silent()
) -> Report:
    """Do what a configuration says; write the reports and the first seed's artifacts where it names a folder.

    All names, options and the folder are checked before anything is read.

    Raises
    ------
    MetarecError
        One line: what is wrong and where. Nothing is written then.
    """
    experiment = Experiment(config, plugins=plugins, progress=progress)
    report = experiment.run()
    experiment.write(report)
    return report


class Experiment:
    """A configuration with its names made into things; `run_experiment` in two steps.

    Raises
    ------
    MetarecError
        One line: a name or an option that does not fit, or a folder that cannot be written.
    """

    def __init__(
        self, config: RunConfig, *, plugins: PluginManager | None = None, progress: Progress = Silent()
    ) -> None:
        self.config = config
        self.plugins = plugins = plugins or plugin_manager()
        self.progress = progress
        self.device = usable_device(config.device)
        self.reader: Reader = _create(plugins.datasets, config.dataset)
        self.protocol: Protocol = _create(plugins.protocols, config.protocol)
        self.metrics = create_metrics(config.metrics or (), plugins.metrics)
        reporters = config.reporters or [Choice(name=name) for name in plugins.reporters]
        self.reporters: list[Reporter] = [_create(plugins.reporters, choice) for choice in reporters]
        self.choices = config.algorithms or _default_algorithms(plugins)
        for choice in self.choices:
            _create(plugins.algorithms, choice)
        for scenario in config.scenarios or ():
            if scenario not in SCENARIOS:
                raise ConfigError(unknown_name("scenario", scenario, SCENARIOS))
        if config.out is not None:
            _check_writable(config.out, [choice.name for choice in self.choices])
        self.rows: list[Row] = []
        self.timings: dict[str, list[dict[str, Any]]] = {}
        self.recommenders: dict[str, Recommender] = {}

    def run(self) -> Report:
        """Read, split, fit and evaluate.

        Raises
        ------
        MetarecError
            One line: what is wrong and where.
        """
        self.plugins.hook.configure.call_historic(kwargs={"config": self.config})
        with self._showing(f"read {self.reader.name}"):
            dataset = self.reader.read()
        self._check_feedback(dataset)
        for seed in self._each(self.config.seeds, "seeds"):
            self._run_seed(dataset, seed)
        report = Report(self.rows, self.timings, self.config.model_dump(mode="json"), _versions())
        self.plugins.hook.after_evaluate(report=report)
        return report

    def write(self, report: Report) -> None:
        """Write the reports and the first seed's artifacts to the folder of the configuration, if it names one.

        Raises
        ------
        MetarecError
            They cannot be written. The folder is then as it was before.
        """
        if self.config.out is not None:
            with self._showing("write"):
                self._write(report, self.config.out)

    def _run_seed(self, dataset: Dataset, seed: int) -> None:
        with self._showing("split"):
            split = self._split(dataset, seed)
        run = Run(device=self.device, seed=seed, progress=self.progress, hooks=self.plugins.hook)
        evaluations: list[Evaluation] = []
        for choice in self._each(self.choices, "algorithms"):
            algorithm: Algorithm = _create(self.plugins.algorithms, choice)
            seconds = self._fit(algorithm, split, run)
            evaluations.append(evaluate(algorithm, split, self.metrics, run=run))
            timings = {"seed": seed, "fit_seconds": seconds, "cells": evaluations[-1].timings()}
            self.timings.setdefault(choice.name, []).append(timings)
            if choice.name not in self.recommenders:
                self.recommenders[choice.name] = Recommender.from_split(algorithm.to("cpu"), split)
        with self._showing("compare"):
            self.rows += compare(
                evaluations, self.metrics, dataset=dataset.name, protocol=self.protocol.name, seed=seed
            )

    def _split(self, dataset: Dataset, seed: int) -> Split:
        split = self.protocol.split(dataset, seed=seed)
        if self.config.scenarios is None:
            return split
        made = {cell.scenario for cell in split.cells}
        for scenario in self.config.scenarios:
            if scenario not in made:
                has = ", ".join(sorted(made))
                raise ConfigError(
                    f"protocol {self.protocol.name!r} has no scenario {scenario!r}, expected some of {has}"
                )
        return split.scenarios(self.config.scenarios)

    def _fit(self, algorithm: Algorithm, split: Split, run: Run) -> float:
        """Fit, and return the seconds that it took."""
        self.plugins.hook.before_fit(algorithm=algorithm, train=split.train)
        begun = time.perf_counter()
        with self._showing(f"fit {algorithm.name}"):
            algorithm.fit(split.train, run=run)
        seconds = time.perf_counter() - begun
        self.plugins.hook.after_fit(algorithm=algorithm, train=split.train)
        return seconds

    def _check_feedback(self, dataset: Dataset) -> None:
        feedback = "implicit" if dataset.scale.implicit else "explicit"
        fits = {
            choice.name: feedback in self.plugins.algorithms[choice.name].feedback for choice in self.choices
        }
        if self.config.algorithms is not None and not all(fits.values()):
            unsuited = next(name for name, its in fits.items() if not its)
            raise ConfigError(
                f"algorithm {unsuited!r} cannot fit {feedback} feedback, which data set {dataset.name!r} has"
            )
        self.choices = tuple(choice for choice in self.choices if fits[choice.name])

    def _write(self, report: Report, out: Path) -> None:
        """Write everything beside its place first, so that a full disk leaves nothing half-written."""
        try:
            with TemporaryDirectory(dir=_existing(out), prefix=".") as folder:
                stage = Path(folder)
                try:
                    written = self._write_to(stage, report)
                except MetarecError as error:  # which names the place that people do not know
                    raise type(error)(str(error).replace(str(stage), str(out))) from None
                (out / "artifacts").mkdir(parents=True, exist_ok=True)
                for path in written:
                    atomic.replace(path, out / path.relative_to(stage))
        except OSError as error:
            raise MetarecError(f"{out}: cannot be written: {error.strerror}") from None

    def _write_to(self, folder: Path, report: Report) -> list[Path]:
        written = [reporter.write(report, folder) for reporter in self.reporters]
        for name, recommender in self.recommenders.items():
            artifact.save(recommender, folder / "artifacts" / name, plugins=self.plugins)
            written.append(folder / "artifacts" / name)
        return written

    def _each(self, steps: Sequence[T], description: str) -> Iterable[T]:
        """Count the steps, if there are several."""
        if len(steps) == 1:
            return steps
        return self.progress.track(steps, description=description, total=len(steps))

    @contextmanager
    def _showing(self, description: str) -> Iterator[None]:
        """Show what is being done."""
        for _ in self.progress.track([None], description=description, total=1):
            yield


def _create(registry: Registry, choice: Choice) -> Any:
    return registry.create(choice.name, **choice.options)


def _default_algorithms(plugins: PluginManager) -> tuple[Choice, ...]:
    floors = [name for name, kind in plugins.algorithms.items() if kind.is_floor]
    return tuple(Choice(name=name) for name in [*floors, DEFAULT_ALGORITHM])


def _check_writable(out: Path, algorithms: Sequence[str]) -> None:
    try:
        with TemporaryDirectory(dir=_existing(out), prefix="."):
            pass
    except OSError as error:
        raise ConfigError(f"out {str(out)!r}: cannot be written: {error.strerror}") from None
    for name in algorithms:
        artifact.check_place(out / "artifacts" / name)


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that there is."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def _versions() -> dict[str, str]:
    return {
        "metarec": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "numpy", "polars")},
    }

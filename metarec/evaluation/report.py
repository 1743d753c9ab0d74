"""`Report`: rows of figures with their floors and their significance, and the base of what writes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict

import torch
from torch import Tensor

from metarec.atomic import replacing
from metarec.data import Side
from metarec.errors import MetarecError
from metarec.evaluation.evaluator import CellScores, Evaluation
from metarec.evaluation.metric import Metric
from metarec.evaluation.significance import holm_levels, interval, normal_interval, p_value, resampled_sums

# Relative, of values that are made of float32 predictions: a gain within it, however constant, is none.
_ROUNDING = 1e-6


class Row(TypedDict):
    """One metric of one algorithm in one cell.

    ``list`` is what was scored, the query or the full catalogue. ``support`` is null where it holds all there is.
    ``low`` and ``high`` bound the value at ``level``, by a bootstrap that resamples entities. ``gain`` is signed so
    that positive is better than ``best_floor``, the floor with the best value in the cell; ``gain_low`` and
    ``gain_high`` bound it, paired, by the same bootstrap. They are as far apart as Holm's correction for all cells of
    one data set, protocol, seed, list, algorithm and metric asks: they exclude zero just where the gain is significant
    at ``1 − level``. ``entities`` counts those on which the metric is defined. What a metric does not have
    (`Metric.against_floors`, `Metric.per_task`) is null.
    """

    dataset: str
    protocol: str
    seed: int
    list: str
    side: Side
    algorithm: str
    is_floor: bool
    scenario: str
    support: int | None
    metric: str
    higher_is_better: bool | None
    value: float
    low: float | None
    high: float | None
    level: float
    entities: int
    best_floor: str | None
    gain: float | None
    gain_low: float | None
    gain_high: float | None


@dataclass(frozen=True)
class Report:
    """All that a run found.

    Parameters
    ----------
    rows : list of Row
    timings : dict
        Plain values: seconds to fit, and microseconds per task as `Evaluation.timings` gives them, by
        algorithm.
    config : dict
        The configuration of the run, as plain values.
    versions : dict
        Versions of metarec and of what it computes with.
    """

    rows: list[Row]
    timings: dict[str, Any]
    config: dict[str, Any]
    versions: dict[str, Any]


class Reporter(ABC):
    """Writes a finished report as one file. Options are keyword-only and typed.

    Attributes
    ----------
    name : str
        What users call it.
    file_name : str
        The file that it writes.
    """

    name: ClassVar[str]
    file_name: ClassVar[str]

    @abstractmethod
    def render(self, report: Report) -> str:
        """The file's text."""

    def write(self, report: Report, directory: Path) -> Path:
        """Write the report into `directory`, whole or not at all; return the file's path.

        Raises
        ------
        MetarecError
            The file cannot be written; the line says why.
        """
        path, text = directory / self.file_name, self.render(report)
        try:
            with replacing(path) as written:
                written.write_text(text, encoding="utf-8")
        except OSError as error:
            raise MetarecError(f"{path}: cannot be written: {error.strerror or error}") from None
        return path


def compare(
    evaluations: Sequence[Evaluation],
    metrics: Sequence[Metric],
    *,
    dataset: str,
    protocol: str,
    seed: int,
    level: float = 0.95,
    resamples: int = 2000,
) -> list[Row]:
    """The rows of a report for one split: every algorithm beside the best floor of each cell.

    Parameters
    ----------
    evaluations : sequence of Evaluation
        Of all algorithms on the same split, floors among them.
    metrics : sequence of Metric
        Those that they were evaluated by.
    dataset, protocol, seed
        What was split, how, and by which seed; it seeds the resampling too.
    level : float, default 0.95
        Of all intervals, and 1 less the level of significance.
    resamples : int, default 2000
        Bootstrap resamples.
    """
    common = _Common(dataset, protocol, seed, level)
    gains: list[_Gain] = []
    rows: list[Row] = []
    for cell in _by_cell(evaluations).values():
        comparison = _CellComparison(cell, metrics, common, resamples)
        rows += comparison.rows()
        gains += comparison.gains
    _bound(gains, level)
    return rows


@dataclass(frozen=True)
class _Common:
    """What all rows of one split share."""

    dataset: str
    protocol: str
    seed: int
    level: float


@dataclass(frozen=True)
class _Gain:
    """A row's gain, whose interval is as wide as its family asks."""

    row: Row
    gain: float
    error: float  # its bootstrap standard error


_Contender = tuple[Evaluation, CellScores]


def _by_cell(evaluations: Iterable[Evaluation]) -> dict[tuple[Any, ...], list[_Contender]]:
    cells: dict[tuple[Any, ...], list[_Contender]] = defaultdict(list)
    for evaluation in evaluations:
        for cell in evaluation.cells:
            cells[cell.scenario, cell.support, cell.side].append((evaluation, cell))
    return cells


class _CellComparison:
    """All algorithms and metrics of one cell, resampled together."""

    def __init__(
        self,
        contenders: Sequence[_Contender],
        metrics: Sequence[Metric],
        common: _Common,
        resamples: int,
    ) -> None:
        self.contenders = contenders
        self.metrics = {metric.label: metric for metric in metrics}
        self.common = common
        self.gains: list[_Gain] = []
        entity = contenders[0][1].entity
        self.entities, self.entity = torch.unique(entity, return_inverse=True)
        self.keys = [
            (index, key)
            for index, (_, cell) in enumerate(contenders)
            for key, score in cell.scores.items()
            if score.value.dim() == 1
        ]
        self.sums = self._sums()
        self.resampled = resampled_sums(self.sums.flatten(1), resamples=resamples, seed=common.seed).view(
            resamples, len(self.keys), 2
        )

    def _sums(self) -> Tensor:
        """float64 [E, M, 2]: each entity's sums of weighted values and of weights, for each of `keys`."""
        columns = []
        for index, key in self.keys:
            score = self.contenders[index][1].scores[key]
            weight = torch.where(score.value.isnan(), 0.0, score.weight)
            columns.append(torch.stack([score.value.nan_to_num() * weight, weight], dim=1))
        per_task = (
            torch.stack(columns, dim=1).cpu() if columns else torch.zeros(self.entity.numel(), 0, 2).double()
        )
        return per_task.new_zeros(self.entities.numel(), *per_task.shape[1:]).index_add_(
            0, self.entity, per_task
        )

    def rows(self) -> list[Row]:
        rows = []
        for list_name, label in dict.fromkeys(key for _, cell in self.contenders for key in cell.scores):
            if self.metrics[label].per_task:
                rows += self._per_task_rows(list_name, label)
            else:
                rows += [
                    self._row(index, list_name, label, value=float(cell.scores[list_name, label].value))
                    for index, (_, cell) in enumerate(self.contenders)
                ]
        return rows

    def _per_task_rows(self, list_name: str, label: str) -> list[Row]:
        metric = self.metrics[label]
        columns = {index: m for m, (index, key) in enumerate(self.keys) if key == (list_name, label)}
        defined = {index: m for index, m in columns.items() if float(self.sums[:, m, 1].sum()) > 0}
        values = {index: float(self._value(metric, self.sums[:, m].sum(0))) for index, m in defined.items()}
        resampled = {index: self._value(metric, self.resampled[:, m]) for index, m in defined.items()}
        floor = self._best_floor(metric, values)
        rows = []
        for index, m in defined.items():
            entities = int((self.sums[:, m, 1] > 0).sum())
            row = self._row(index, list_name, label, value=values[index], entities=entities)
            if entities > 1:
                row["low"], row["high"] = interval(_defined(resampled[index]), self.common.level).tolist()
            if floor is not None:
                sign = 1 if metric.higher_is_better else -1
                row["best_floor"] = self.contenders[floor][0].algorithm
                row["gain"] = gain = sign * (values[index] - values[floor])
                if entities > 1:
                    error = float(_defined(resampled[index] - resampled[floor]).std())
                    if index != floor:
                        error = max(error, _ROUNDING * abs(values[floor]))
                    self.gains.append(_Gain(row, gain, error))
            rows.append(row)
        return rows

    def _value(self, metric: Metric, sums: Tensor) -> Tensor:
        return metric.summarise(sums[..., 0] / sums[..., 1])

    def _best_floor(self, metric: Metric, values: dict[int, float]) -> int | None:
        floors = [index for index in values if self.contenders[index][0].is_floor]
        if not floors or not metric.against_floors:
            return None
        return (max if metric.higher_is_better else min)(floors, key=values.__getitem__)

    def _row(
        self, index: int, list_name: str, label: str, *, value: float, entities: int | None = None
    ) -> Row:
        evaluation, cell = self.contenders[index]
        return Row(
            dataset=self.common.dataset,
            protocol=self.common.protocol,
            seed=self.common.seed,
            list=list_name,
            side=cell.side,
            algorithm=evaluation.algorithm,
            is_floor=evaluation.is_floor,
            scenario=cell.scenario,
            support=cell.support,
            metric=label,
            higher_is_better=self.metrics[label].higher_is_better,
            value=value,
            low=None,
            high=None,
            level=self.common.level,
            entities=self.entities.numel() if entities is None else entities,
            best_floor=None,
            gain=None,
            gain_low=None,
            gain_high=None,
        )


def _defined(resampled: Tensor) -> Tensor:
    """Without the resamples that drew no entity on which the metric is defined."""
    return resampled[~resampled.isnan()]


def _bound(gains: Iterable[_Gain], level: float) -> None:
    """Give rows the intervals of their gains; a family is one list, algorithm and metric over all cells."""
    families: dict[tuple[str, str, str], list[_Gain]] = defaultdict(list)
    for its in gains:
        families[its.row["list"], its.row["algorithm"], its.row["metric"]].append(its)
    for family in families.values():
        levels = holm_levels([p_value(its.gain, its.error) for its in family], level)
        for its, its_level in zip(family, levels, strict=True):
            its.row["gain_low"], its.row["gain_high"] = normal_interval(its.gain, its.error, its_level)


_Averaged = Literal["low", "high", "gain", "gain_low", "gain_high"]
_AVERAGED: tuple[_Averaged, ...] = ("low", "high", "gain", "gain_low", "gain_high")


def mean_over_seeds(rows: Iterable[Row]) -> list[Row]:
    """One row for all seeds of a cell, as summaries show it.

    Values, gains and the ends of their intervals are means over the seeds, which makes intervals wide enough even
    if the seeds' errors were one and the same. With a single seed the rows stay as they are.
    """
    cells: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        cells[_cell_of(row)].append(row)
    return [seeds[0] if len(seeds) == 1 else _mean(seeds) for seeds in cells.values()]


def _cell_of(row: Row) -> tuple[Any, ...]:
    source = (row["dataset"], row["protocol"], row["list"], row["side"])
    return (*source, row["algorithm"], row["scenario"], row["support"], row["metric"])


def _mean(seeds: Sequence[Row]) -> Row:
    mean = seeds[0].copy()
    mean["value"] = sum(row["value"] for row in seeds) / len(seeds)
    for name in _AVERAGED:
        values = [value for row in seeds if (value := row[name]) is not None]
        mean[name] = sum(values) / len(seeds) if len(values) == len(seeds) else None
    floors = {floor for row in seeds if (floor := row["best_floor"]) is not None}
    mean["best_floor"] = " / ".join(sorted(floors)) or None
    return mean

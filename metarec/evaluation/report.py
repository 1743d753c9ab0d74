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
from metarec.evaluation.significance import holm, interval, p_value, resampled_sums


class Row(TypedDict):
    """One metric of one algorithm in one cell.

    ``support`` is null where the support holds all there is. ``low`` and ``high`` bound the value,
    ``gain_low`` and ``gain_high`` the paired gain over the best floor, each at ``level``, by a bootstrap that
    resamples entities; ``gain`` is signed so that positive is better than ``best_floor``, the floor with the
    best value in the cell. ``p_value`` is that of no gain, adjusted after Holm for all cells of one data set,
    protocol, seed, list, algorithm and metric; ``significant`` says whether it is below ``1 − level``.
    ``entities`` counts those on which the metric is defined. What a metric does not have
    (`Metric.against_floors`, `Metric.per_task`) is null.
    """

    dataset: str
    protocol: str
    seed: int
    list: Literal["query", "catalogue"]
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
    p_value: float | None
    significant: bool | None


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
    rows: list[Row] = []
    for cell in _by_cell(evaluations).values():
        rows += _CellComparison(cell, metrics, dataset, protocol, seed, level, resamples).rows()
    _adjust(rows, level)
    return rows


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
        dataset: str,
        protocol: str,
        seed: int,
        level: float,
        resamples: int,
    ) -> None:
        self.contenders = contenders
        self.metrics = {metric.label: metric for metric in metrics}
        self.common = {"dataset": dataset, "protocol": protocol, "seed": seed, "level": level}
        self.level = level
        first = contenders[0][1]
        self.entities, self.entity = first.entity.unique(return_inverse=True)
        self.keys = [
            (index, key)
            for index, (_, cell) in enumerate(contenders)
            for key, score in cell.scores.items()
            if score.value.dim() == 1
        ]
        self.sums = self._sums()
        self.resampled = resampled_sums(self.sums.flatten(1), resamples=resamples, seed=seed).view(
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
                row["low"], row["high"] = interval(_defined(resampled[index]), self.level).tolist()
            if floor is not None:
                sign = 1 if metric.higher_is_better else -1
                row["best_floor"] = self.contenders[floor][0].algorithm
                row["gain"] = sign * (values[index] - values[floor])
                if entities > 1:
                    gains = _defined(sign * (resampled[index] - resampled[floor]))
                    row["gain_low"], row["gain_high"] = interval(gains, self.level).tolist()
                    row["p_value"] = p_value(row["gain"], gains)
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
            **self.common,
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
            entities=self.entities.numel() if entities is None else entities,
            best_floor=None,
            gain=None,
            gain_low=None,
            gain_high=None,
            p_value=None,
            significant=None,
        )


def _defined(resampled: Tensor) -> Tensor:
    """Without the resamples that drew no entity on which the metric is defined."""
    return resampled[~resampled.isnan()]


def _adjust(rows: Iterable[Row], level: float) -> None:
    """Holm's correction, within each list, algorithm and metric over all cells."""
    families: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["p_value"] is not None:
            families[row["list"], row["algorithm"], row["metric"]].append(row)
    for family in families.values():
        adjusted = holm([row["p_value"] for row in family if row["p_value"] is not None])
        for row, value in zip(family, adjusted, strict=True):
            row["p_value"], row["significant"] = value, value < 1 - level


_AVERAGED = ("value", "low", "high", "gain", "gain_low", "gain_high")


def mean_over_seeds(rows: Iterable[Row]) -> list[Row]:
    """One row for all seeds of a cell, as summaries show it.

    Values, gains and the ends of their intervals are means over the seeds; a gain counts as significant where
    it is so, and of the same sign, in every seed. With a single seed the rows stay as they are.
    """
    cells: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        key = ("dataset", "protocol", "list", "side", "algorithm", "scenario", "support", "metric")
        cells[tuple(row[name] for name in key)].append(row)
    return [seeds[0] if len(seeds) == 1 else _mean(seeds) for seeds in cells.values()]


def _mean(seeds: Sequence[Row]) -> Row:
    mean = seeds[0].copy()
    for name in _AVERAGED:
        values = [row[name] for row in seeds]
        mean[name] = None if None in values else sum(values) / len(values)
    if mean["gain"] is not None:
        mean["best_floor"] = " / ".join(sorted({row["best_floor"] or "" for row in seeds}))
        signs = {row["gain"] > 0 for row in seeds if row["gain"] is not None}
        mean["significant"] = len(signs) == 1 and all(row["significant"] for row in seeds)
        mean["p_value"] = max(row["p_value"] for row in seeds if row["p_value"] is not None)
    return mean

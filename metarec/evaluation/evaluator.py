"""The evaluator: adapt, predict, rank and score, once per cell, with memory bounded by blocks of tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from metarec.data import Dataset, Side, partner_side
from metarec.errors import ConfigError, PluginError
from metarec.evaluation.metric import Metric
from metarec.evaluation.ranking import catalogue_places, seen_places
from metarec.evaluation.scored import Catalogue, Scored
from metarec.learning import Adapted, Algorithm, Diagnosed, Factorized, Prediction, Run
from metarec.tasks import Cell, Query, Ragged, Split, Tasks

_PAIRS_AT_ONCE = 1 << 19  # predicted in one block

T = TypeVar("T")


@dataclass(frozen=True)
class Score:
    """What one metric makes of one list of a cell.

    Parameters
    ----------
    value : float64 [T], or scalar
        Value of each task, NaN where undefined; one value where the metric has none per task.
    weight : float64 [T]
        How much each task counts.
    """

    value: Tensor
    weight: Tensor


@dataclass(frozen=True)
class CellScores:
    """All scores of one algorithm in one cell.

    Parameters
    ----------
    scenario, support
        As in `Cell`.
    side : "user" or "item"
        Of the tasks' entities.
    entity : int64 [T]
        The tasks' entities, as in `Tasks`.
    scores : mapping of (list, metric label) to Score
    adapt_seconds : float
        Adapting all T tasks.
    predict_seconds : float
        Predicting all query pairs; 0 where nothing needed them.
    rank_seconds : float
        Scoring and ranking the full catalogue for all tasks; 0 where it was not asked for.
    diagnostics : mapping of str to float
        What a `Diagnosed` algorithm says of its work: means over the tasks.
    """

    scenario: str
    support: int | None
    side: Side
    entity: Tensor
    scores: dict[tuple[str, str], Score]
    adapt_seconds: float
    predict_seconds: float
    rank_seconds: float
    diagnostics: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """One algorithm's scores in every cell that it can answer."""

    algorithm: str
    is_floor: bool
    cells: list[CellScores]

    def timings(self) -> list[dict[str, object]]:
        """Per cell, as plain values: its number of tasks, and microseconds per task to adapt, predict and rank.

        Where the algorithm is `Diagnosed`, what it says of its work as well.
        """
        return [
            {
                "scenario": cell.scenario,
                "support": cell.support,
                "tasks": cell.entity.numel(),
                "adapt_us": _micros(cell.adapt_seconds, cell),
                "predict_us": _micros(cell.predict_seconds, cell),
                "rank_us": _micros(cell.rank_seconds, cell),
                **({"diagnostics": cell.diagnostics} if cell.diagnostics else {}),
            }
            for cell in self.cells
        ]


def _micros(seconds: float, cell: CellScores) -> float:
    return round(1e6 * seconds / max(1, cell.entity.numel()), 2)


def evaluate(
    algorithm: Algorithm, split: Split, metrics: Sequence[Metric], *, run: Run = Run()
) -> Evaluation:
    """Score a fitted algorithm in every cell of a split that its `scenarios` name.

    The query is scored as a list of its own; where a cell has the list "catalogue", all its candidates less
    the support (or less `Tasks.excluded`, which holds it) are ranked as well. With implicit feedback only the
    latter is scored: a query then holds nothing that was not chosen.

    Parameters
    ----------
    algorithm : Algorithm
        Fitted on ``split.train``.
    split : Split
    metrics : sequence of Metric
    run : Run
        Where and in which precision to predict, and who is told of progress.

    Raises
    ------
    ConfigError
        A metric looks at more positions than the catalogue has candidates.
    PluginError
        The algorithm predicted something that is not a number.
    """
    cells = [cell for cell in split.cells if cell.scenario in algorithm.scenarios]
    steps = run.progress.track(cells, description=f"evaluate {algorithm.name}", total=len(cells))
    with torch.inference_mode():
        scores = [_CellEvaluator(algorithm, split.train, cell, run).scores(metrics) for cell in steps]
    return Evaluation(algorithm.name, algorithm.is_floor, scores)


class _CellEvaluator:
    """One algorithm in one cell."""

    def __init__(self, algorithm: Algorithm, train: Dataset, cell: Cell, run: Run) -> None:
        self.algorithm = algorithm
        self.train = train
        self.cell = cell
        self.tasks: Tasks = cell.tasks
        self.support = cell.tasks.support.to(run.device, run.dtype)
        self.query = cell.tasks.query.to(run.device, run.dtype)
        self.rating = cell.tasks.rating.to(run.device)
        self.candidates = cell.tasks.candidates.to(run.device)
        excluded = cell.tasks.support if cell.tasks.excluded is None else cell.tasks.excluded
        self.excluded = Ragged(excluded.offsets.to(run.device), excluded.partner.to(run.device))

    def scores(self, metrics: Sequence[Metric]) -> CellScores:
        feedback = "implicit" if self.train.scale.implicit else "explicit"
        lists = ("catalogue",) if self.train.scale.implicit else self.cell.lists
        wanted = {
            name: [metric for metric in metrics if name in metric.lists and feedback in metric.feedback]
            for name in self.cell.lists
            if name in lists
        }
        scores: dict[tuple[str, str], Score] = {}
        adapted, adapt_seconds = self._timed(lambda: self.algorithm.adapt(self.support))
        predict_seconds = rank_seconds = 0.0
        if wanted.get("query"):
            scored, predict_seconds = self._query(adapted)
            scores |= _apply(wanted["query"], "query", scored)
        if wanted.get("catalogue"):
            depth = self._depth(wanted["catalogue"])
            scored, rank_seconds = self._catalogue(adapted, depth)
            scores |= _apply(wanted["catalogue"], "catalogue", scored)
        return CellScores(
            self.cell.scenario,
            self.cell.support,
            self.support.side,
            self.tasks.entity,
            scores,
            adapt_seconds,
            predict_seconds,
            rank_seconds,
            self._diagnostics(adapted),
        )

    def _diagnostics(self, adapted: Adapted) -> dict[str, float]:
        if not isinstance(self.algorithm, Diagnosed) or not len(self.tasks):
            return {}
        figures = self.algorithm.diagnostics(adapted)
        return {name: round(float(figure.mean()), 4) for name, figure in figures.items()}

    def _query(self, adapted: Adapted) -> tuple[Scored, float]:
        """The query as a list of its own, and the seconds to predict it."""
        prediction, seconds = self._timed(lambda: self._predict(adapted))
        self._check(prediction.mean.isfinite(), "infinite or undefined means", "finite numbers")
        if prediction.variance is not None:
            self._check(prediction.variance > 0, "variances that are not positive", "positive numbers")
        scored = Scored.of_query(
            self.train.scale, self.query.offsets, self.rating, prediction.mean, prediction.variance
        )
        return scored, seconds

    def _predict(self, adapted: Adapted) -> Prediction:
        parts = [
            self.algorithm.predict(adapted.select(block), self.query.select(block))
            for block in self._blocks(self.query.counts)
        ]
        variances = [part.variance for part in parts if part.variance is not None]
        return Prediction(
            mean=torch.cat([part.mean for part in parts]),
            variance=torch.cat(variances) if len(variances) == len(parts) else None,
        )

    def _catalogue(self, adapted: Adapted, depth: int) -> tuple[Scored, float]:
        """Lists over all candidates less what is excluded, and the seconds to score and rank them."""
        column = self._columns()
        score_block = self._catalogue_scores(adapted)
        counts = torch.full((len(self.tasks),), self.candidates.numel())
        begun = time.perf_counter()
        parts = [self._rank(score_block(block), block, column, depth) for block in self._blocks(counts)]
        self._synchronize()
        seconds = time.perf_counter() - begun
        score, start, size, top, seen = (torch.cat(part) for part in zip(*parts, strict=True))
        scored = Scored(
            scale=self.train.scale,
            offsets=self.query.offsets,
            rating=self.rating.double(),
            mean=score.double(),
            variance=None,
            start=start,
            size=size,
            depth=depth,
            top=top,
            seen=seen,
            catalogue=self._describe_catalogue(),
        )
        return scored, seconds

    def _rank(self, score: Tensor, block: Tensor, column: Tensor, depth: int) -> tuple[Tensor, ...]:
        """Of a block of tasks: the query pairs' scores and places, the first candidates and whether they were seen."""
        seen_offsets, seen_entry = self.excluded.entries(block)
        seen_owner, seen_column = (_owner(seen_offsets), column[self.excluded.partner[seen_entry]])
        seen_score = score[seen_owner, seen_column]
        listed = seen_column >= 0
        score[seen_owner[listed], seen_column[listed]] = -torch.inf
        query_offsets, query_entry = self.query.entries(block)
        query_owner, query_column = (_owner(query_offsets), column[self.query.partner[query_entry]])
        places = catalogue_places(score, query_owner, query_column, depth)
        self._check(~places.value.isnan(), "undefined scores", "numbers")
        seen = seen_places(places, seen_offsets, seen_column, seen_score)
        return (score[query_owner, query_column], places.start, places.size, places.top, seen)

    def _catalogue_scores(self, adapted: Adapted) -> Callable[[Tensor], Tensor]:
        """A function that scores all candidates for a block of tasks: float [b, C]."""
        algorithm, partners = self.algorithm, self.query.partners
        if isinstance(algorithm, Factorized):
            factors = algorithm.candidate_factors(self.support.side, partners.select(self.candidates)).T
            return lambda block: algorithm.query_factors(adapted.select(block)) @ factors

        def predict(block: Tensor) -> Tensor:
            query = Query.full(block.numel(), partners, self.candidates)
            return algorithm.predict(adapted.select(block), query).mean.view(block.numel(), -1).clone()

        return predict

    def _columns(self) -> Tensor:
        """int64 [P]: the candidate that each partner is; −1 where it is none."""
        column = torch.full((len(self.query.partners),), -1, device=self.candidates.device)
        column[self.candidates] = torch.arange(self.candidates.numel(), device=self.candidates.device)
        return column

    def _describe_catalogue(self) -> Catalogue:
        side = self.support.side
        partners = self.query.partners.select(self.candidates)
        train_rows = self.train.rows(partner_side(side)).long()
        counts = torch.bincount(train_rows, minlength=len(self.train.entities(partner_side(side))))
        counts = counts.to(partners.rows.device)
        known = partners.rows >= 0
        popularity = torch.where(known, counts[partners.rows.clamp(min=0)], 0)
        return Catalogue(partners.features, popularity, len(self.train.entities(side)))

    def _depth(self, metrics: Sequence[Metric]) -> int:
        count = self.candidates.numel()
        for metric in metrics:
            if metric.depth > count:
                raise ConfigError(
                    f"metric {metric.label!r}: looks at {metric.depth} positions, but the catalogue of "
                    f"scenario {self.cell.scenario!r} has {count} candidates"
                )
        return max(metric.depth for metric in metrics)

    def _check(self, right: Tensor, what: str, expected: str) -> None:
        if not right.all():
            support = "all" if self.cell.support is None else self.cell.support
            raise PluginError(
                f"algorithm {self.algorithm.name!r}: predicted {what} in scenario {self.cell.scenario!r} "
                f"at support size {support}, expected {expected}"
            )

    def _blocks(self, counts: Tensor) -> Iterator[Tensor]:
        """Tasks in order, in blocks of about as many pairs as are predicted at once; `counts` of each task."""
        block = counts.cumsum(0).sub(1).clamp(min=0).div(_PAIRS_AT_ONCE, rounding_mode="floor")
        sizes = torch.unique_consecutive(block, return_counts=True)[1].tolist()
        yield from torch.split(torch.arange(counts.numel(), device=self.candidates.device), sizes)

    def _timed(self, work: Callable[[], T]) -> tuple[T, float]:
        begun = time.perf_counter()
        result = work()
        self._synchronize()
        return result, time.perf_counter() - begun

    def _synchronize(self) -> None:
        if self.candidates.device.type != "cpu":
            torch.accelerator.synchronize(self.candidates.device)


def _owner(offsets: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(offsets.numel() - 1, device=offsets.device), offsets.diff())


def _apply(metrics: Sequence[Metric], name: str, scored: Scored) -> dict[tuple[str, str], Score]:
    usable = [metric for metric in metrics if scored.variance is not None or not metric.needs_variance]
    return {(name, metric.label): Score(metric.score(scored), metric.weight(scored)) for metric in usable}

"""The bases of metric plugins."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar

from torch import Tensor

from metarec.errors import ConfigError, unknown_name
from metarec.evaluation.scored import Scored
from metarec.options import Range, build


class Metric(ABC):
    """Scores lists: a value per task, how tasks are weighed, and which way is better.

    The value of a cell is ``summarise(Σ weight · value / Σ weight)`` over its tasks; tasks whose value is NaN
    are left out. Options are keyword-only and typed.

    Attributes
    ----------
    name : str
        What users type, followed by ``@`` and the option named by `at` where it has one: ``ndcg_linear@5``.
    higher_is_better : bool or None
        None where neither way is better, since there is a target.
    lists : tuple of "query", "catalogue"
        What it scores.
    feedback : tuple of "explicit", "implicit"
        The kinds of rating it applies to.
    needs_variance : bool
        Whether algorithms without a predictive variance have no value.
    against_floors : bool
        Whether gains over the best floor are reported.
    per_task : bool
        False for a metric of all lists together: `score` then gives one value, and there is no interval.
    at : str or None
        The integer option that stands after the ``@``.
    default_at : tuple of int
        The values of that option used where no metrics are named; empty for the option's own default.
    """

    name: ClassVar[str]
    higher_is_better: ClassVar[bool | None]
    lists: ClassVar[tuple[str, ...]] = ("query",)
    feedback: ClassVar[tuple[str, ...]] = ("explicit", "implicit")
    needs_variance: ClassVar[bool] = False
    against_floors: ClassVar[bool] = True
    per_task: ClassVar[bool] = True
    at: ClassVar[str | None] = None
    default_at: ClassVar[tuple[int, ...]] = ()

    @abstractmethod
    def score(self, scored: Scored) -> Tensor:
        """float64 [T]: the value of each task; NaN where it is undefined. Without `per_task`, one value: float64
        scalar.
        """

    def weight(self, scored: Scored) -> Tensor:
        """float64 [T]: how much each task counts; by default all alike."""
        return scored.counts.new_ones(len(scored)).double()

    def summarise(self, mean: Tensor) -> Tensor:
        """The reported value, of the weighted mean of the tasks' values; elementwise."""
        return mean

    @property
    def label(self) -> str:
        """The name that reports give it: ``ndcg_linear@5``."""
        return self.name if self.at is None else f"{self.name}@{getattr(self, self.at)}"

    @property
    def depth(self) -> int:
        """How many positions of a list it looks at."""
        return 1


class RatingMetric(Metric):
    """An error of the predicted ratings of the query.

    Every query pair counts alike, so that a task weighs as it is long.
    """

    higher_is_better: ClassVar[bool | None] = False
    feedback = ("explicit",)

    def weight(self, scored: Scored) -> Tensor:
        """float64 [T]: the number of query pairs."""
        return scored.counts.double()


class CalibrationMetric(RatingMetric):
    """How well the predictive distribution fits: Gaussian, with the algorithm's own mean and variance."""

    needs_variance = True


class RankingMetric(Metric):
    """How well the first k of a list are chosen: the expected value over random order of tied scores.

    In a list over the full catalogue (candidates less what the entity had before) a partner without a rating
    is not relevant and has gain 0. A task without a relevant query partner has no value.

    Parameters
    ----------
    k : int, default 5
        Length of the list.
    """

    higher_is_better = True
    lists = ("query", "catalogue")
    at = "k"

    def __init__(self, *, k: Annotated[int, Range(1, 10_000)] = 5) -> None:
        self.k = k

    @property
    def depth(self) -> int:
        """k."""
        return self.k


class CatalogueMetric(Metric):
    """What else is to say of the first k of lists over the full catalogue. Ties go to the lower row.

    A random list wins most of these, so they are not held against floors.

    Parameters
    ----------
    k : int, default 5
        Length of the list.
    """

    higher_is_better = True
    lists = ("catalogue",)
    against_floors = False
    at = "k"

    def __init__(self, *, k: Annotated[int, Range(1, 10_000)] = 5) -> None:
        self.k = k

    @property
    def depth(self) -> int:
        """k."""
        return self.k


def create_metrics(names: Iterable[str], known: Mapping[str, type[Metric]]) -> list[Metric]:
    """The metrics that users ask for, such as ``["rmse", "ndcg_linear@5"]``.

    Without a name it is every known metric, once for each of its `default_at`.

    Parameters
    ----------
    names : iterable of str
        A metric's name; after an ``@``, the value of the option that it names in `at`.
    known : mapping of name to metric class

    Raises
    ------
    ConfigError
        No such metric (with the nearest right name), or what follows the ``@`` is out of place, no integer or
        out of range.
    """
    wanted = list(names) or [name for kind in known.values() for name in _default_names(kind)]
    return [_create(name, known) for name in dict.fromkeys(wanted)]


def _default_names(kind: type[Metric]) -> list[str]:
    return [f"{kind.name}@{value}" for value in kind.default_at] or [kind.name]


def _create(wanted: str, known: Mapping[str, type[Metric]]) -> Metric:
    name, at_sign, value = wanted.partition("@")
    if name not in known:
        raise ConfigError(unknown_name("metric", name, known))
    kind, what = known[name], f"metric {wanted!r}"
    if not at_sign:
        return build(kind, {}, what=what)
    if kind.at is None:
        raise ConfigError(f"{what}: takes nothing after its name, expected {name!r}")
    return build(kind, {kind.at: value}, what=what)

"""What a report says, in words: which algorithm for which scenario, and how often it beats the floors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from metarec.evaluation.report import Row, mean_over_seeds
from metarec.tasks import SCENARIOS

# What people ask, and the metrics that answer, best first.
_QUESTIONS = {
    "predicting ratings": ("rmse", "mse", "mae", "mae_median"),
    "knowing how sure it is": ("crps", "nll"),
    "choosing from the catalogue": ("ndcg_linear", "ndcg_exp", "map", "mrr", "precision", "recall", "hit"),
}
# The others are for comparison with papers, or say the same again.
_DECIDING = ("rmse", "crps", "nll", "ndcg_linear")


@dataclass(frozen=True)
class Headline:
    """A question and the metric that answers it.

    Parameters
    ----------
    question : str
    list : "query" or "catalogue"
    metric : str
        Its label.
    """

    question: str
    list: str
    metric: str


@dataclass(frozen=True)
class Verdict:
    """The answer to one question in one scenario, on average over support sizes.

    Parameters
    ----------
    scenario : str
    headline : Headline
    best : str
        The algorithm with the best mean value.
    value : float
        That value.
    floor : str or None
        The best floor by the same measure; None where no floor was evaluated.
    floor_value : float or None
    is_floor : bool
        Whether the best is a floor itself.
    better, worse, cells : int
        Support sizes at which the best is significantly better and worse than the cell's best floor, and how
        many there are.
    """

    scenario: str
    headline: Headline
    best: str
    value: float
    floor: str | None
    floor_value: float | None
    is_floor: bool
    better: int
    worse: int
    cells: int

    @property
    def lead(self) -> float | None:
        """How far the best is from the best floor, as a share of the floor's value."""
        if self.floor_value is None or self.floor_value == 0:
            return None
        return abs(self.value - self.floor_value) / abs(self.floor_value)

    @property
    def sentence(self) -> str:
        """The verdict in plain words, without the scenario and the question."""
        value = f"{self.best} ({self.headline.metric} {format_value(self.value)})"
        if self.floor is None:
            return f"{value}; no floor was run beside it"
        if self.is_floor:
            return f"{value}: a floor, nothing learned does better"
        lead = "" if self.lead is None else f"{100 * self.lead:.1f} % "
        return f"{value}: {lead}better than {self.floor}, {self.significance}"

    @property
    def significance(self) -> str:
        """At how many support sizes the best differs significantly from the best floor."""
        if self.better == 0 and self.worse == 0:
            return "not significantly"
        if self.cells == 1:
            return "significantly so"
        worse = f", worse at {self.worse}" if self.worse else ""
        return f"significantly at {self.better} of {self.cells} sizes{worse}"


@dataclass(frozen=True)
class Tally:
    """How one algorithm does by one metric beside the best floor of each cell.

    Parameters
    ----------
    algorithm : str
    list : "query" or "catalogue"
    metric : str
        Its label.
    better, level, worse : int
        Cells in which it is significantly better, not told apart, and significantly worse.
    """

    algorithm: str
    list: str
    metric: str
    better: int
    level: int
    worse: int

    @property
    def cells(self) -> int:
        """How many there are."""
        return self.better + self.level + self.worse


def answer(rows: Sequence[Row]) -> list[str]:
    """What a report says first: a sentence for each learned algorithm, best first, and one on what was counted."""
    where = f"On {rows[0]['dataset']} ({rows[0]['protocol']})" if rows else ""
    learned = sorted({row["algorithm"] for row in rows if not row["is_floor"]})
    if not rows:
        return ["Nothing was evaluated."]
    if not learned:
        return [f"{where}, only floors were run; there is nothing learned to hold against them."]
    counted = deciding(tallies(rows))
    if not counted:
        return [f"{where}, no floor was run beside {', '.join(learned)}: whether they help cannot be said."]
    totals = [_total(name, [tally for tally in counted if tally.algorithm == name]) for name in learned]
    totals.sort(key=lambda total: (total.worse - total.better, total.algorithm))
    first, *others = [_sentence(total) for total in totals]
    metrics = ", ".join(dict.fromkeys(_metric_name(tally) for tally in counted))
    return [f"{where}, {first}", *others, f"A cell is a scenario at one support size, by one of {metrics}."]


def _total(algorithm: str, parts: Sequence[Tally]) -> Tally:
    better, level, worse = (
        sum(getattr(tally, name) for tally in parts) for name in ("better", "level", "worse")
    )
    return Tally(algorithm, "", "", better, level, worse)


def _sentence(total: Tally) -> str:
    rest = [f"is not told apart from it in {total.level}"] if total.level else []
    rest += [f"is worse in {total.worse}"] if total.worse else []
    beats = f"{total.algorithm} beats the best floor in {total.better} of {total.cells} cells"
    return ", ".join([beats, " and ".join(rest)] if rest else [beats]) + "."


def _metric_name(tally: Tally) -> str:
    return f"{tally.metric} of the {tally.list}" if "@" in tally.metric else tally.metric


def tallies(rows: Iterable[Row]) -> list[Tally]:
    """Of every learned algorithm and metric that has gains, in the order of the rows."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in mean_over_seeds(rows):
        if row["gain"] is not None and not row["is_floor"]:
            groups[row["algorithm"], row["list"], row["metric"]].append(row)
    return [_tally(key, its) for key, its in groups.items()]


def _tally(key: tuple[str, str, str], rows: Sequence[Row]) -> Tally:
    better, worse = sum(map(is_better, rows)), sum(map(is_worse, rows))
    return Tally(*key, better=better, level=len(rows) - better - worse, worse=worse)


def deciding(counted: Iterable[Tally]) -> list[Tally]:
    """Those of the metrics that decide which algorithm to use: RMSE, CRPS, NLL and linear nDCG, of the catalogue where
    there is one; all where there are none of these.
    """
    counted = list(counted)
    by_name = {
        name: [tally for tally in counted if tally.metric.partition("@")[0] == name] for name in _DECIDING
    }
    found = list(chain.from_iterable(by_name.values()))
    ranked = {tally.list for tally in found if "@" in tally.metric}
    chosen = min(ranked, default="")  # the catalogue before the query
    return [tally for tally in found if "@" not in tally.metric or tally.list == chosen] or counted


def headlines(rows: Sequence[Row]) -> list[Headline]:
    """For each question the metric that answers it best among those in `rows`; one with gains where none does."""
    have_floors = any(row["is_floor"] for row in rows)
    known = dict.fromkeys(
        (row["metric"], row["list"]) for row in rows if row["gain"] is not None or not have_floors
    )
    found = [
        headline
        for question, names in _QUESTIONS.items()
        if (headline := _first(question, names, list(known))) is not None
    ]
    return found or [Headline("doing well", name, metric) for metric, name in list(known)[:1]]


def _first(question: str, names: Sequence[str], known: Sequence[tuple[str, str]]) -> Headline | None:
    for name in names:
        matching = [(list_name, metric) for metric, list_name in known if metric.partition("@")[0] == name]
        if matching:
            list_name, metric = min(matching)  # the catalogue before the query
            in_query = list_name == "query" and "@" in metric
            return Headline("putting the query in order" if in_query else question, list_name, metric)
    return None


def verdicts(rows: Iterable[Row]) -> list[Verdict]:
    """The answer to each question in each scenario, in the order of `SCENARIOS`."""
    means = mean_over_seeds(rows)
    found = []
    for scenario in scenarios_of(means):
        for headline in headlines(means):
            cells = [row for row in means if row["scenario"] == scenario and matches(row, headline)]
            if cells:
                found.append(_verdict(scenario, headline, cells))
    return found


def _verdict(scenario: str, headline: Headline, cells: Sequence[Row]) -> Verdict:
    means = mean_values(cells)
    best = next(iter(means))
    floor_names = {row["algorithm"] for row in cells if row["is_floor"]}
    floor = next((name for name in means if name in floor_names), None)
    its = [row for row in cells if row["algorithm"] == best]
    return Verdict(
        scenario=scenario,
        headline=headline,
        best=best,
        value=means[best],
        floor=floor,
        floor_value=None if floor is None else means[floor],
        is_floor=best in floor_names,
        better=sum(map(is_better, its)),
        worse=sum(map(is_worse, its)),
        cells=len(its),
    )


def mean_values(cells: Sequence[Row]) -> dict[str, float]:
    """The mean value over all support sizes of each algorithm that answers at all of them, best first.

    Parameters
    ----------
    cells : sequence of Row
        Of one scenario, list and metric.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for row in cells:
        values[row["algorithm"]].append(row["value"])
    most = max(map(len, values.values()), default=0)
    means = {name: sum(its) / most for name, its in values.items() if len(its) == most}
    sign = -1 if cells and cells[0]["higher_is_better"] else 1
    return dict(sorted(means.items(), key=lambda item: sign * item[1]))


def ranked(cells: Sequence[Row]) -> list[str]:
    """The algorithms in `cells` (as in `mean_values`), best first; last those that do not answer at all sizes."""
    return list(dict.fromkeys([*mean_values(cells), *(row["algorithm"] for row in cells)]))


def scenarios_of(rows: Iterable[Row]) -> list[str]:
    """The scenarios in `rows`, in the order of `SCENARIOS`."""
    present = {row["scenario"] for row in rows}
    return [name for name in SCENARIOS if name in present] + sorted(present - set(SCENARIOS))


def matches(row: Row, headline: Headline) -> bool:
    """Whether a row is of a headline's list and metric."""
    return row["list"] == headline.list and row["metric"] == headline.metric


def support_sizes(rows: Iterable[Row]) -> list[int | None]:
    """The support sizes in `rows`, in order, "all" last."""
    return sorted({row["support"] for row in rows}, key=lambda size: (size is None, size or 0))


def support_name(size: int | None) -> str:
    """A support size as people read it."""
    return "all" if size is None else str(size)


def format_value(value: float) -> str:
    """Three decimals, or as many digits as a large or tiny value needs."""
    return f"{value:.3f}" if 0.001 <= abs(value) < 100 or value == 0 else f"{value:.4g}"


def is_better(row: Row) -> bool:
    """Whether a row is significantly better than the best floor of its cell."""
    return row["gain_low"] is not None and row["gain_low"] > 0


def is_worse(row: Row) -> bool:
    """Whether a row is significantly worse than the best floor of its cell."""
    return row["gain_high"] is not None and row["gain_high"] < 0


def best_floors(cells: Iterable[Row]) -> dict[int | None, Row]:
    """The row of the best floor at each support size.

    Parameters
    ----------
    cells : iterable of Row
        Of one scenario, list and metric.
    """
    best: dict[int | None, Row] = {}
    for row in cells:
        if row["is_floor"]:
            other = best.get(row["support"])
            if other is None or (row["value"] > other["value"]) == row["higher_is_better"]:
                best[row["support"]] = row
    return best

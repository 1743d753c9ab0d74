"""What a report says, in words and in short: which algorithm for which scenario."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from metarec.evaluation.report import Report, Row, mean_over_seeds
from metarec.tasks import SCENARIOS

# What people ask, and the metrics that answer, best first.
_QUESTIONS = {
    "predicting ratings": ("rmse", "mse", "mae", "mae_median"),
    "knowing how sure it is": ("crps", "nll"),
    "choosing from the catalogue": ("ndcg_linear", "ndcg_exp", "map", "mrr", "precision", "recall", "hit"),
}


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
            return f"{value}: a floor; nothing learned does better"
        lead = "" if self.lead is None else f"{100 * self.lead:.1f} % "
        return f"{value}, {lead}better than the best floor, {self.floor}; {self.significance}"

    @property
    def significance(self) -> str:
        """At how many support sizes the best differs significantly from the best floor."""
        sizes = "support size" if self.cells == 1 else "support sizes"
        if self.better == 0 and self.worse == 0:
            return "not significant at any support size" if self.cells > 1 else "not significant"
        if self.cells == 1:
            return f"significantly {'better' if self.better else 'worse'}"
        worse = f", worse at {self.worse}" if self.worse else ""
        return f"significantly better at {self.better} of {self.cells} {sizes}{worse}"


def headlines(rows: Sequence[Row]) -> list[Headline]:
    """For each question the metric that answers it best among those in `rows`; any metric with gains where none does."""
    known = dict.fromkeys(
        (row["metric"], row["list"]) for row in rows if row["gain"] is not None or not _floors(rows)
    )
    found = [
        headline
        for question, names in _QUESTIONS.items()
        if (headline := _first(question, names, list(known))) is not None
    ]
    return found or [Headline("doing well", name, metric) for metric, name in list(known)[:1]]


def _floors(rows: Sequence[Row]) -> bool:
    return any(row["is_floor"] for row in rows)


def _first(question: str, names: Sequence[str], known: Sequence[tuple[str, str]]) -> Headline | None:
    for name in names:
        matching = [(list_name, metric) for metric, list_name in known if metric.partition("@")[0] == name]
        if matching:
            list_name, metric = min(matching)  # the catalogue before the query
            question = (
                question if list_name == "catalogue" or "@" not in metric else "putting the query in order"
            )
            return Headline(question, list_name, metric)
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


def _verdict(scenario: str, headline: Headline, cells: Sequence[Row]) -> Verdict:
    by_algorithm: dict[str, list[Row]] = defaultdict(list)
    for row in cells:
        by_algorithm[row["algorithm"]].append(row)
    most = max(len(rows) for rows in by_algorithm.values())
    means = {
        name: sum(row["value"] for row in rows) / most
        for name, rows in by_algorithm.items()
        if len(rows) == most
    }
    choose = max if cells[0]["higher_is_better"] else min
    best = choose(means, key=means.__getitem__)
    floors = [name for name in means if by_algorithm[name][0]["is_floor"]]
    floor = choose(floors, key=means.__getitem__) if floors else None
    rows = by_algorithm[best]
    return Verdict(
        scenario=scenario,
        headline=headline,
        best=best,
        value=means[best],
        floor=floor,
        floor_value=None if floor is None else means[floor],
        is_floor=rows[0]["is_floor"],
        better=sum(is_better(row) for row in rows),
        worse=sum(is_worse(row) for row in rows),
        cells=len(rows),
    )


def is_better(row: Row) -> bool:
    """Whether a row is significantly better than the best floor of its cell."""
    return row["gain_low"] is not None and row["gain_low"] > 0


def is_worse(row: Row) -> bool:
    """Whether a row is significantly worse than the best floor of its cell."""
    return row["gain_high"] is not None and row["gain_high"] < 0


def print_summary(report: Report, console: Console) -> None:
    """Print which algorithm does best in each scenario, and the figures behind it by support size."""
    rows = mean_over_seeds(report.rows)
    console.print(_answers(report.rows))
    for scenario in scenarios_of(rows):
        console.print(_table(scenario, [row for row in rows if row["scenario"] == scenario], headlines(rows)))
    console.print(
        "[green]▲[/] significantly better, [red]▼[/] significantly worse than the best floor of the cell "
        "(paired bootstrap over entities, Holm-corrected)",
        style="dim",
    )


def _answers(rows: Sequence[Row]) -> Table:
    table = Table(
        title="What to use", title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0)
    )
    table.add_column("scenario", style="bold")
    table.add_column("for")
    table.add_column("best")
    previous = None
    for verdict in verdicts(rows):
        name = "" if verdict.scenario == previous else verdict.scenario
        style = "yellow" if verdict.is_floor else "green" if verdict.better else ""
        table.add_row(name, verdict.headline.question, Text(verdict.sentence, style=style))
        previous = verdict.scenario
    return table


def _table(scenario: str, rows: Sequence[Row], shown: Sequence[Headline]) -> Table:
    sizes = support_sizes(rows)
    table = Table(
        title=f"\n{escape(scenario)}, by ratings in the support", title_justify="left", title_style="bold"
    )
    table.add_column("metric")
    table.add_column("algorithm")
    for size in sizes:
        table.add_column(support_name(size), justify="right")
    for headline in shown:
        cells = [row for row in rows if matches(row, headline)]
        if cells:
            _add_section(table, headline, cells, sizes)
    return table


def _add_section(table: Table, headline: Headline, cells: Sequence[Row], sizes: Sequence[int | None]) -> None:
    arrow = "↑" if cells[0]["higher_is_better"] else "↓"
    label = f"{headline.metric} {arrow}"
    for algorithm in dict.fromkeys(row["algorithm"] for row in cells if not row["is_floor"]):
        its = {row["support"]: row for row in cells if row["algorithm"] == algorithm}
        table.add_row(label, algorithm, *(_figure(its.get(size)) for size in sizes))
        label = ""
    floors = _best_floors(cells)
    names = {row["algorithm"] for row in floors.values()}
    if len(names) == 1:
        table.add_row(
            label, f"{names.pop()} [dim](best floor)[/]", *(_figure(floors.get(size)) for size in sizes)
        )
    elif floors:
        table.add_row(label, "best floor", *(_figure(floors.get(size)) for size in sizes))
        table.add_row(
            "", "", *(f"[dim]{floors[size]['algorithm'] if size in floors else ''}[/]" for size in sizes)
        )
    table.add_section()


def _best_floors(cells: Sequence[Row]) -> dict[int | None, Row]:
    best: dict[int | None, Row] = {}
    for row in cells:
        if row["is_floor"]:
            other = best.get(row["support"])
            if other is None or (row["value"] > other["value"]) == row["higher_is_better"]:
                best[row["support"]] = row
    return best


def _figure(row: Row | None) -> Text:
    if row is None:
        return Text("–", style="dim")
    if row["is_floor"]:
        return Text(f"{format_value(row['value'])}  ")
    mark, style = ("▲", "bold green") if is_better(row) else ("▼", "red") if is_worse(row) else (" ", "")
    return Text(f"{format_value(row['value'])} {mark}", style=style)

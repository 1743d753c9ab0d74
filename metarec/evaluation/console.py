"""A report's summary on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from metarec.evaluation.report import Report, Row, mean_over_seeds
from metarec.evaluation.summary import (
    Headline,
    answer,
    best_floors,
    format_value,
    headlines,
    is_better,
    is_worse,
    matches,
    ranked,
    scenarios_of,
    support_name,
    support_sizes,
    verdicts,
)


def print_summary(report: Report, console: Console) -> None:
    """Print whether the learned beat the floors, what does best in each scenario, and the figures by support size."""
    first, *rest = answer(report.rows)
    console.print(Text(first, style="bold"))
    for sentence in rest:
        console.print(Text(sentence))
    rows = mean_over_seeds(report.rows)
    if not rows:
        return
    console.print(_verdicts(rows))
    for scenario in scenarios_of(rows):
        console.print(f"\n[bold]{escape(scenario)}[/], by ratings in the support", highlight=False)
        console.print(_figures([row for row in rows if row["scenario"] == scenario], headlines(rows)))
    console.print(
        "\n[green]▲[/] significantly better, [red]▼[/] significantly worse than the best floor of the cell "
        "(paired bootstrap over entities, Holm-corrected).",
        style="dim",
    )


def _verdicts(rows: Sequence[Row]) -> Table:
    table = Table(
        title="\nWhat to use", title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0)
    )
    table.add_column("scenario", style="bold")
    table.add_column("for")
    table.add_column("best on average over support sizes")
    previous = None
    for verdict in verdicts(rows):
        name = "" if verdict.scenario == previous else verdict.scenario
        style = "yellow" if verdict.is_floor else "green" if verdict.better else ""
        table.add_row(escape(name), verdict.headline.question, Text(verdict.sentence, style=style))
        previous = verdict.scenario
    return table


def _figures(rows: Sequence[Row], shown: Sequence[Headline]) -> Table:
    """A scenario's figures: every learned algorithm, and the floors that are best at some support size."""
    sizes = support_sizes(rows)
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("")
    for size in sizes:
        table.add_column(f"{support_name(size)}  ", justify="right", no_wrap=True)
    for headline in shown:
        cells = [row for row in rows if matches(row, headline)]
        if cells:
            _add_section(table, headline, cells, sizes)
    return table


def _add_section(table: Table, headline: Headline, cells: Sequence[Row], sizes: Sequence[int | None]) -> None:
    arrow = "↑" if cells[0]["higher_is_better"] else "↓"
    if table.row_count:
        table.add_row()
    table.add_row(Text(f"{headline.metric} {arrow}", style="bold"))
    best = best_floors(cells)
    shown = {row["algorithm"] for row in best.values()}
    shown |= {row["algorithm"] for row in cells if not row["is_floor"]}
    for algorithm in (name for name in ranked(cells) if name in shown):
        its = {row["support"]: row for row in cells if row["algorithm"] == algorithm}
        is_floor = any(row["is_floor"] for row in its.values())
        label = Text.assemble(f" {algorithm}", (" (floor)" if is_floor else "", "dim"))
        table.add_row(label, *(_figure(its.get(size), its.get(size) is best.get(size)) for size in sizes))


def _figure(row: Row | None, is_best_floor: bool) -> Text:
    if row is None:
        return Text("–  ", style="dim")
    if row["is_floor"]:
        return Text(f"{format_value(row['value'])}  ", style="" if is_best_floor else "dim")
    mark, style = ("▲", "bold green") if is_better(row) else ("▼", "red") if is_worse(row) else (" ", "")
    return Text(f"{format_value(row['value'])} {mark}", style=style)

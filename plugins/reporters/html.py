"""`html`: the report for people."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from metarec import hookimpl
from metarec.evaluation import (
    Headline,
    Report,
    Reporter,
    Row,
    Tally,
    answer,
    best_floors,
    deciding,
    format_value,
    headlines,
    is_better,
    is_worse,
    matches,
    mean_over_seeds,
    ranked,
    scenarios_of,
    support_name,
    support_sizes,
    tallies,
    verdicts,
)

_COVERAGE = "interval_coverage"
_GLYPHS = "●■▲◆▼✚✖"  # as the marks of the plots


class HTMLReporter(Reporter):
    """Writes ``report.html``: one page that needs no other file and no network.

    It says first whether what was learned beats the floors, then what to use in which scenario, then shows the curves
    over support sizes, the calibration, all figures, timings, what samplers say of their draws, versions and the
    configuration.
    """

    name = "html"
    file_name = "report.html"

    def render(self, report: Report) -> str:
        """The page."""
        rows = mean_over_seeds(report.rows)
        title = f"{rows[0]['dataset']}: what to use for cold start" if rows else "metarec report"
        learned = _learned(rows)
        parts = [
            _head(title, report.rows),
            _verdict_table(report.rows),
            _tally_section(tallies(report.rows)),
            _curves(rows, learned),
            _calibration(rows, learned),
            *(
                _scenario(name, [row for row in rows if row["scenario"] == name], rows)
                for name in scenarios_of(rows)
            ),
            _timings(report.timings),
            _diagnostics(report.timings),
            _reading(report.rows),
            _origin(report),
        ]
        return _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(part for part in parts if part))


def _learned(rows: Sequence[Row]) -> list[str]:
    """The learned algorithms in the order of their colours: that of their names."""
    return sorted({row["algorithm"] for row in rows if not row["is_floor"]})


def _head(title: str, rows: Sequence[Row]) -> str:
    first, *others = answer(rows)
    protocols = ", ".join(sorted({row["protocol"] for row in rows}))
    seeds = ", ".join(str(seed) for seed in sorted({row["seed"] for row in rows}))
    about = f"<p class=about>protocol {escape(protocols)}, seed {escape(seeds)}</p>" if rows else ""
    lines = "".join(f"<p>{escape(sentence)}</p>" for sentence in others)
    return f"<header><h1>{escape(title)}</h1>{about}<p class=answer>{escape(first)}</p>{lines}</header>"


def _verdict_table(rows: Sequence[Row]) -> str:
    found = verdicts(rows)
    body = [
        (
            escape(verdict.scenario) if index == 0 or found[index - 1].scenario != verdict.scenario else "",
            escape(verdict.headline.question),
            f"<span class={'floor' if verdict.is_floor else 'better' if verdict.better else 'learned'}>"
            f"{escape(verdict.sentence)}</span>",
        )
        for index, verdict in enumerate(found)
    ]
    table = _table(("scenario", "for", "best on average over support sizes"), body)
    return _section("What to use", table) if found else ""


def _tally_section(counted: Sequence[Tally]) -> str:
    if not counted:
        return ""
    about = "<p>Cells (scenarios at one support size) by how the algorithm does beside the best floor of each.</p>"
    others = [tally for tally in counted if tally not in deciding(counted)]
    folded = f"<details><summary>by other metrics</summary>{_tally_table(others)}</details>" if others else ""
    return _section("How often the floors are beaten", about + _tally_table(deciding(counted)) + folded)


def _tally_table(counted: Iterable[Tally]) -> str:
    body = [
        (
            escape(tally.algorithm),
            escape(_metric_title(tally.metric, tally.list)),
            f"<b>{tally.better}</b>",
            str(tally.level),
            str(tally.worse),
            _bar(tally),
        )
        for tally in sorted(counted, key=lambda tally: tally.algorithm)
    ]
    return _table(("algorithm", "metric", "better", "not told apart", "worse", ""), body)


def _bar(tally: Tally) -> str:
    shares = {"better": tally.better, "level": tally.level, "worse": tally.worse}
    parts = "".join(f"<i class={name} style='flex:{count}'></i>" for name, count in shares.items() if count)
    return f"<span class=bar aria-hidden=true>{parts}</span>"


def _curves(rows: Sequence[Row], learned: Sequence[str]) -> str:
    from metarec.evaluation import plots  # here, since matplotlib takes a second to import

    parts = []
    for headline in headlines(rows):
        figures = []
        for scenario in scenarios_of(rows):
            cells = [row for row in rows if row["scenario"] == scenario and matches(row, headline)]
            if len(support_sizes(cells)) > 1:
                label = f"{headline.metric} by support size, {scenario}"
                salt = f"curve {headline.metric} {headline.list} {scenario}"
                figures.append(_figure(scenario, plots.support_curve(cells, learned, label=label, salt=salt)))
        if figures:
            name = _metric_title(headline.metric, headline.list)
            parts.append(f"<h3>{escape(name)} {_direction(rows, headline)}</h3>{_grid(figures)}")
    legend = _legend(learned, "best floor of each size", "other floors (may run out of the plot)")
    return _section("By support size", legend + "".join(parts)) if parts else ""


def _calibration(rows: Sequence[Row], learned: Sequence[str]) -> str:
    from metarec.evaluation import plots

    figures = []
    for scenario in scenarios_of(rows):
        cells = [
            row
            for row in rows
            if row["scenario"] == scenario
            and row["metric"].partition("@")[0] == _COVERAGE
            and row["list"] == "query"
        ]
        if cells:
            label = f"coverage of predictive intervals by their level, {scenario}"
            svg = plots.calibration_curve(cells, learned, label=label, salt=f"calibration {scenario}")
            figures.append(_figure(scenario, svg))
    about = (
        "<p>How many ratings lie within the predictive interval of a given level, on average over support sizes. "
        "Below the dashed line an algorithm is surer than it may be, above it more timid.</p>"
    )
    legend = _legend(learned, "as it should be", "floors")
    return _section("Calibration", about + legend + _grid(figures)) if figures else ""


def _legend(learned: Sequence[str], dashed: str, thin: str) -> str:
    from metarec.evaluation.plots import SERIES

    marks = [
        f"<li><b style='color:var(--series-{index % SERIES})'>{_GLYPHS[index % len(_GLYPHS)]}</b> {escape(name)}"
        for index, name in enumerate(learned)
    ]
    return f"<ul class=legend>{''.join(marks)}<li><b>╌╌</b> {dashed}<li class=floor><b>──</b> {thin}</ul>"


def _grid(figures: Iterable[str]) -> str:
    return f"<div class=grid>{''.join(figures)}</div>"


def _figure(caption: str, svg: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>"


def _scenario(name: str, rows: Sequence[Row], all_rows: Sequence[Row]) -> str:
    """All figures of a scenario: a table per metric, those that answer the questions unfolded."""
    keys = dict.fromkeys((row["metric"], row["list"]) for row in rows)
    first = [key for its in headlines(all_rows) if (key := (its.metric, its.list)) in keys]
    parts = [
        _metric(metric, rows, list_name, unfolded=(metric, list_name) in first)
        for metric, list_name in dict.fromkeys([*first, *keys])
    ]
    entities = max(row["entities"] for row in rows)
    about = f"<p class=about>{entities} {escape(rows[0]['side'])}s with a query</p>"
    return _section(f"All figures: {name}", about + "".join(parts))


def _metric(metric: str, rows: Sequence[Row], list_name: str, *, unfolded: bool) -> str:
    """A table of one metric by support size: the learned first, then the floors, both best first."""
    headline = Headline("", list_name, metric)
    cells = [row for row in rows if matches(row, headline)]
    by_place = {(row["algorithm"], row["support"]): row for row in cells}
    floors = {row["algorithm"] for row in cells if row["is_floor"]}
    sizes, best = support_sizes(cells), best_floors(cells)
    body = [
        (
            f"<span class={'floor' if name in floors else 'learned'}>{escape(name)}</span>",
            *(_value(by_place.get((name, size)), best.get(size)) for size in sizes),
        )
        for name in sorted(ranked(cells), key=lambda name: name in floors)
    ]
    table = _table(("algorithm", *map(support_name, sizes)), body)
    title = f"{escape(_metric_title(metric, list_name))} {_direction(cells, headline)}"
    return f"<details{' open' if unfolded else ''}><summary>{title}</summary>{table}</details>"


def _value(row: Row | None, best_floor: Row | None) -> str:
    if row is None:
        return "–"
    value = format_value(row["value"])
    if row["is_floor"]:
        return f"<span class=floor>{f'<b>{value}</b>' if row is best_floor else value}</span>"
    kind, mark = ("better", " ▲") if is_better(row) else ("worse", " ▼") if is_worse(row) else ("learned", "")
    return f"<span class={kind}>{value}{mark}</span><small>{_interval(row)}</small>"


def _interval(row: Row) -> str:
    if row["low"] is None or row["high"] is None:
        return ""
    return f"{format_value(row['low'])} … {format_value(row['high'])}"


def _direction(rows: Sequence[Row], headline: Headline) -> str:
    higher = next((row["higher_is_better"] for row in rows if matches(row, headline)), None)
    if higher is None:
        return ""
    return f"<span class=about>{'higher' if higher else 'lower'} is better</span>"


def _metric_title(metric: str, list_name: str) -> str:
    return f"{metric}, {list_name}" if "@" in metric and not metric.startswith(_COVERAGE) else metric


def _timings(timings: Mapping[str, Any]) -> str:
    body = []
    for name, seeds in timings.items():
        cells = [cell for its in seeds for cell in its["cells"]]
        tasks = sum(cell["tasks"] for cell in cells)
        figures = [
            sum(cell[kind] * cell["tasks"] for cell in cells) / max(1, tasks)
            for kind in ("adapt_us", "predict_us", "rank_us")
        ]
        fit = sum(its["fit_seconds"] for its in seeds) / max(1, len(seeds))
        body.append((escape(name), f"{fit:.3g}", *(f"{figure:.3g}" for figure in figures)))
    head = (
        "algorithm",
        "fit, seconds",
        "adapt, µs per task",
        "predict the query, µs per task",
        "rank the catalogue, µs per task",
    )
    return _section("Timings", _table(head, body)) if body else ""


def _diagnostics(timings: Mapping[str, Any]) -> str:
    """What algorithms say of their own work in each cell: means over the seeds."""
    found: dict[tuple[str, str, str], list[Mapping[str, float]]] = {}
    for name, seeds in timings.items():
        for cell in (cell for its in seeds for cell in its["cells"] if "diagnostics" in cell):
            key = (name, cell["scenario"], support_name(cell["support"]))
            found.setdefault(key, []).append(cell["diagnostics"])
    figures = list(dict.fromkeys(figure for seeds in found.values() for one in seeds for figure in one))
    body = []
    for key, seeds in found.items():
        means = [_mean_figure([one[figure] for one in seeds if figure in one]) for figure in figures]
        body.append((*map(escape, key), *means))
    head = ("algorithm", "scenario", "ratings in the support", *(name.replace("_", " ") for name in figures))
    about = (
        "<p>What algorithms say of their own work, means over the tasks. "
        "Untrusted: the share of tasks whose draws are not to be trusted.</p>"
    )
    return _section("Diagnostics", about + _table(head, body)) if body else ""


def _mean_figure(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.3g}" if values else "–"


def _reading(rows: Sequence[Row]) -> str:
    level = f"{100 * rows[0]['level']:g} %" if rows else "its level"
    return _section("How to read this", _READING.format(level=level))


def _origin(report: Report) -> str:
    versions = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in report.versions.items()
    )
    config = escape(json.dumps(report.config, indent=1, ensure_ascii=False, default=str))
    return _section("Versions and configuration", f"<dl>{versions}</dl><pre>{config}</pre>")


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table of cells that are markup already; a wide one scrolls by itself."""
    heading = "".join(f"<th scope=col>{escape(text)}</th>" for text in head)
    lines = "".join(
        f"<tr><th scope=row>{first}</th>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>"
        for first, *rest in body
    )
    return f"<div class=wide tabindex=0><table><thead><tr>{heading}</tr></thead><tbody>{lines}</tbody></table></div>"


_READING = """
<p>A floor is a trivial predictor. ▲ and ▼: significantly better and worse than the best floor of the cell, which is in
bold; by a paired bootstrap that resamples entities, at {level}, Holm-corrected over the cells of one algorithm and
metric. Small figures: {level} interval of the value, uncorrected. With several seeds, values and ends of intervals are
means over them.</p>
<p>What counts is RMSE, CRPS, NLL and nDCG. MAE is for comparison with papers: a predictive median beats a mean by it
and is no better for that. Errors are of the mean clipped to the scale. Ranking metrics are expectations over random
order of tied scores; “query” ranks the query only, “catalogue” all candidates. Coverage, novelty, diversity and unseen
are won by chance and are not held against floors.</p>
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

# The series are Okabe and Ito's colours, which people with any colour vision tell apart, lightened on dark.
_STYLE = """
:root { --paper: #fff; --ink: #1b1f24; --muted: #68717d; --line: #d8dde3; --better: #006b4f; --worse: #b03a00;
  --series-0: #0072b2; --series-1: #d55e00; --series-2: #009e73; --series-3: #b0588f; --series-4: #9a6f00;
  --series-5: #3287b5 }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171b; --ink: #e8ebee; --muted: #99a3ae; --line: #333a42; --better: #45c79d; --worse: #ff9461;
    --series-0: #56b4e9; --series-1: #ff8a47; --series-2: #3fcb9f; --series-3: #e39cc5; --series-4: #e6b422;
    --series-5: #9fd3f2 }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif }
main { max-width: 72rem; margin: auto; padding: 1.5rem 1rem 4rem }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem }
p { max-width: 46rem }
.answer { font-size: 1.2rem; font-weight: 600 }
.about, .floor, small { color: var(--muted); font-weight: 400 }
.better { color: var(--better); font-weight: 600 }
.worse { color: var(--worse) }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
thead th { font-size: .85rem; color: var(--muted); font-weight: 500 }
tbody th { font-weight: 500; white-space: nowrap }
details td { white-space: nowrap }
small { display: block; font-size: .75rem }
details { margin: .4rem 0 }
summary { cursor: pointer; font-weight: 600; padding: .2rem 0 }
.bar { display: flex; width: 10rem; height: .7rem; margin-top: .4rem; gap: 2px }
.bar .better { background: var(--better) }
.bar .level { background: var(--line) }
.bar .worse { background: var(--worse) }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(15rem, 100%), 1fr)); gap: 1rem }
figure { margin: 0; max-width: 30rem }
figcaption { font-weight: 600 }
figure svg { width: 100%; height: auto; stroke-linejoin: round }
figure svg text { font-family: system-ui, sans-serif !important }
.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.5rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 0 }
dd { margin: 0 }
pre { overflow-x: auto; font-size: .85rem }
"""


@hookimpl
def register_reporters(register: Callable[[type[Reporter]], None]) -> None:
    """Register `HTMLReporter`."""
    register(HTMLReporter)

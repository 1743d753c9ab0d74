"""Plots of a report as inline SVG: deterministic, without text of their own beyond the axes, coloured by the page.

What is drawn in `ink`, `muted` and `series` colours refers to the CSS variables ``--ink``, ``--muted`` and
``--series-0`` … of the page, so that it follows a light or dark theme.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metarec.evaluation.report import Row
from metarec.evaluation.summary import best_floors, support_name, support_sizes

SERIES = 6
"""How many colours there are; algorithms beyond them start again, with other marks."""

MARKS = ("o", "s", "^", "D", "v", "P", "X")

# Colours that nothing else uses, replaced by the page's.
_INK, _MUTED = "#0a0a01", "#0a0a02"
_SERIES = [f"#0b0b0{number}" for number in range(SERIES)]
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", **{c: f"--series-{i}" for i, c in enumerate(_SERIES)}}

_STYLE: Mapping[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["sans-serif"],
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": _MUTED,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
_THIN: dict[str, Any] = {"linewidth": 0.8, "alpha": 0.6}
_DASHED: dict[str, Any] = {"linewidth": 1.2, "linestyle": (0, (4, 2))}
_SIZE = (3.5, 2.5)  # inches; the page scales it


def support_curve(cells: Sequence[Row], learned: Sequence[str], *, label: str, salt: str) -> str:
    """Values by support size: `learned` with their intervals, the best floor of each size and the other floors muted.

    Parameters
    ----------
    cells : sequence of Row
        Of one scenario, list and metric.
    learned : sequence of str
        Algorithms in the order of their colours.
    label : str
        What a screen reader says.
    salt : str
        Sets the identifiers of this plot apart from those of others on the page.
    """
    places = {size: place for place, size in enumerate(support_sizes(cells))}
    floors = list(best_floors(cells).values())

    def draw(axes: Axes) -> None:
        axes.set_xticks(range(len(places)), [support_name(size) for size in places])
        axes.set_xlabel("ratings in the support")
        for name in _floor_names(cells):
            axes.plot(*_curve(_of(name, cells), places), color=_MUTED, **_THIN)
        axes.plot(*_curve(floors, places), color=_INK, **_DASHED)
        for index, name in enumerate(learned):
            its = _of(name, cells)
            axes.fill_between(*_band(its, places), color=_SERIES[index % SERIES], alpha=0.15, linewidth=0)
            axes.plot(*_curve(its, places), **_series(index))
        axes.set_ylim(*_limits([*floors, *(row for name in learned for row in _of(name, cells))]))

    return _svg(draw, label, salt)


def _curve(rows: Sequence[Row], places: Mapping[int | None, int]) -> tuple[list[int], list[float]]:
    values = {places[row["support"]]: row["value"] for row in rows}
    return sorted(values), [values[place] for place in sorted(values)]


def _band(
    rows: Sequence[Row], places: Mapping[int | None, int]
) -> tuple[list[int], list[float], list[float]]:
    bounds = {
        places[row["support"]]: (row["low"], row["high"])
        for row in rows
        if row["low"] is not None and row["high"] is not None
    }
    at = sorted(bounds)
    return at, [bounds[place][0] for place in at], [bounds[place][1] for place in at]


def _limits(rows: Sequence[Row]) -> tuple[float, float]:
    """Of the vertical axis: what matters fills it, and a floor that is far off runs out of the plot."""
    ends = [end for row in rows for end in (row["value"], row["low"], row["high"]) if end is not None]
    margin = 0.08 * (max(ends) - min(ends)) or 0.01
    return min(ends) - margin, max(ends) + margin


def calibration_curve(cells: Sequence[Row], learned: Sequence[str], *, label: str, salt: str) -> str:
    """Share of ratings within the predictive interval by its level, the mean over support sizes; right is the diagonal.

    Parameters
    ----------
    cells : sequence of Row
        Of one scenario; the metric ``interval_coverage@PERCENT``.
    learned, label, salt
        As for `support_curve`.
    """

    def draw(axes: Axes) -> None:
        axes.set_xlabel("level of the interval")
        axes.set_ylabel("ratings within it")
        axes.plot([0, 1], [0, 1], color=_INK, **_DASHED)
        for name in _floor_names(cells):
            axes.plot(*_coverage(_of(name, cells)), color=_MUTED, **_THIN)
        for index, name in enumerate(learned):
            axes.plot(*_coverage(_of(name, cells)), **_series(index))
        low = min(min(row["value"], _level(row)) for row in cells) - 0.05
        axes.set_xlim(low, 1.0)
        axes.set_ylim(low, 1.0)

    return _svg(draw, label, salt)


def _coverage(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    levels = sorted({_level(row) for row in rows})
    values = [[row["value"] for row in rows if _level(row) == level] for level in levels]
    return levels, [sum(part) / len(part) for part in values]


def _level(row: Row) -> float:
    return int(row["metric"].partition("@")[2]) / 100


def _of(name: str, cells: Sequence[Row]) -> list[Row]:
    return [row for row in cells if row["algorithm"] == name]


def _floor_names(cells: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["algorithm"] for row in cells if row["is_floor"]))


def _series(index: int) -> dict[str, Any]:
    return {"color": _SERIES[index % SERIES], "marker": MARKS[index % len(MARKS)]}


def _svg(draw: Callable[[Axes], None], label: str, salt: str) -> str:
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": f"metarec {salt}"}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        draw(figure.add_subplot())
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return _inline(text.getvalue(), label)


def _inline(svg: str, label: str) -> str:
    """The SVG as an HTML page holds it: no XML head, namespaces, metadata, style sheet or group names; the page's
    colours.
    """
    head, _, body = svg.partition("<svg ")[2].partition(">")
    (view,) = re.findall(r'viewBox="[^"]*"', head)
    body = re.sub(r"<metadata>.*?</metadata>\s*|<style.*?</style>|</svg>\s*$", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body).replace("xlink:href=", "href=")
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    return f'<svg {view} role="img" aria-label="{escape(label)}">{body}</svg>'

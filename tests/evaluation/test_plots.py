"""Plots: what is drawn where, read from the SVG."""

from __future__ import annotations

import re

import pytest

from metarec.evaluation import plots


@pytest.fixture
def cells(make_row):
    made = []
    for size, value in ((0, 1.0), (5, 0.9), (None, 0.8)):
        made.append(make_row(algorithm="new", support=size, value=value, low=value - 0.01, high=value + 0.01))
        made.append(make_row(algorithm="floor-a", support=size, value=1.02))
        made.append(make_row(algorithm="floor-far-off", support=size, value=50.0))
    return made


def tick_labels(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def numbers(svg: str) -> list[float]:
    return [float(text.replace("−", "-")) for text in tick_labels(svg) if re.fullmatch(r"[−\d.]+", text)]


def paths(svg: str, colour: str) -> list[list[tuple[float, float]]]:
    """The points of the lines in a colour, in the picture's own coordinates (y downwards)."""
    found = re.findall(rf'<path d="([^"]*)"[^>]*style="fill: none;[^"]* stroke: var\(--{colour}\)', svg)
    return [[(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path)] for path in found]


def test_a_curve_has_its_sizes_in_order_and_falls_where_values_fall(cells) -> None:
    svg = plots.support_curve(list(reversed(cells)), ["new"], label="x", salt="1")
    assert tick_labels(svg)[:4] == ["0", "5", "all", "ratings in the support"]
    (line,) = paths(svg, "series-0")
    assert [x for x, _ in line] == sorted(x for x, _ in line)
    heights = [y for _, y in line]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1])  # equal steps
    assert heights[0] < heights[1]


def test_a_floor_that_is_far_off_does_not_stretch_the_axis(cells) -> None:
    svg = plots.support_curve(cells, ["new"], label="x", salt="1")
    assert max(numbers(svg)[2:]) <= 1.1
    only_floors = [row for row in cells if row["is_floor"]]
    assert max(numbers(plots.support_curve(only_floors, [], label="x", salt="1"))[2:]) <= 1.2


def test_algorithms_keep_their_colours_where_one_is_missing(cells) -> None:
    svg = plots.support_curve(cells, ["absent", "new"], label="x", salt="1")
    assert "var(--series-1)" in svg
    assert paths(svg, "series-1") and not any(paths(svg, "series-0"))


def test_calibration_is_the_mean_over_sizes_at_each_level(make_row) -> None:
    made = [
        make_row(metric=f"interval_coverage@{percent}", support=size, value=percent / 100 + shift)
        for percent in (90, 50)
        for size, shift in ((0, 0.1), (5, -0.1))
    ]
    svg = plots.calibration_curve(made, ["new"], label="x", salt="1")
    (diagonal,) = paths(svg, "ink")[:1]
    (line,) = paths(svg, "series-0")
    (x0, y0), (x1, y1) = diagonal
    assert len(line) == 2
    for x, y in line:
        assert y == pytest.approx(y0 + (x - x0) * (y1 - y0) / (x1 - x0), abs=1e-3)


def test_svg_is_inline_and_refers_to_the_page_alone(cells) -> None:
    svg = plots.support_curve(cells, ["new"], label='a "label" & more', salt="1")
    assert svg.startswith('<svg viewBox="0 0 ') and svg.endswith("</svg>")
    assert 'aria-label="a &quot;label&quot; &amp; more"' in svg
    assert "http" not in svg and "<style" not in svg and "#0" not in svg


def test_the_same_rows_give_the_same_svg_and_a_salt_its_own_identifiers(cells) -> None:
    first, again, other = (plots.support_curve(cells, ["new"], label="x", salt=salt) for salt in "112")
    assert first == again
    identifiers = [set(re.findall(r' id="([^"]*)"', svg)) for svg in (first, other)]
    assert identifiers[0] and not identifiers[0] & identifiers[1]

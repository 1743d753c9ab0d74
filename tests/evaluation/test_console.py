"""The summary on a terminal."""

from __future__ import annotations

import pytest
from rich.console import Console

from metarec.evaluation import Report, print_summary

SIZES = (0, 1, 3, 5, 10, 20, None)


@pytest.fixture
def report(make_row) -> Report:
    rows = []
    for scenario in ("new-item", "new-user"):
        for size in SIZES:
            rows.append(make_row(scenario=scenario, support=size, algorithm="floor-median", value=1.0))
            rows.append(make_row(scenario=scenario, support=size, algorithm="floor-never-best", value=1.7))
            rows.append(
                make_row(scenario=scenario, support=size, algorithm="[b]new[/b]", value=0.8, gain_low=0.1)
            )
            rows.append(
                make_row(scenario=scenario, support=size, algorithm="poor", value=1.5, gain_high=-0.1)
            )
    return Report(rows, {}, {}, {})


def printed(report: Report, width: int) -> list[str]:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        print_summary(report, console)
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [80, 120])
def test_the_answer_stands_first_and_everything_fits(report, width: int) -> None:
    lines = printed(report, width)
    assert lines[0].startswith("On made-up (cold-start), [b]new[/b] beats the best floor in 14 of 14 cells.")
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)


def test_each_scenario_shows_the_learned_and_the_best_floors_by_size(report) -> None:
    lines = printed(report, 80)
    start = next(i for i, line in enumerate(lines) if line.startswith("new-user, by ratings"))
    assert lines[start + 1].split() == ["0", "1", "3", "5", "10", "20", "all"]
    table = [line.split() for line in lines[start + 2 : start + 6]]
    assert table[0] == ["rmse", "↓"]
    assert table[1] == ["[b]new[/b]", *["0.800", "▲"] * 7]
    assert table[2] == ["floor-median", "(floor)", *["1.000"] * 7]
    assert table[3] == ["poor", *["1.500", "▼"] * 7]
    assert not any("floor-never-best" in line for line in lines)


def test_a_size_that_an_algorithm_does_not_answer_is_left_open(report) -> None:
    rows = [row for row in report.rows if (row["algorithm"], row["support"]) != ("poor", 5)]
    lines = printed(Report(rows, {}, {}, {}), 80)
    poor = next(line.split() for line in reversed(lines) if line.split()[:1] == ["poor"])
    assert poor == ["poor", *["1.500", "▼"] * 3, "–", *["1.500", "▼"] * 3]


def test_an_empty_report_says_so() -> None:
    assert printed(Report([], {}, {}, {}), 80) == ["Nothing was evaluated."]

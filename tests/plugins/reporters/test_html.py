"""`report.html`, read by a parser."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from metarec.evaluation import Report
from metarec.pluginmanager import create_plugin_manager

HOSTILE = '<script>alert("1")</script> & $\\frac$ _x'
VOID = {"meta", "br", "hr", "input", "link", "img"}
SELF_CLOSED_BY_HTML = {"li"}  # whose end tag HTML lets us leave out


class Page(HTMLParser):
    """Elements, texts by element, and whether what was opened was closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID | SELF_CLOSED_BY_HTML:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def all_text(self) -> str:
        return "\n".join(text for _, text in self.texts if text)

    def of(self, tag: str) -> list[str]:
        return [text for its, text in self.texts if its == tag and text]


def rows_of(make_row, names=("new", "floor"), scenarios=("warm", "new-user", "strange")) -> list[Any]:
    made = []
    for scenario in scenarios:
        for size in (None,) if scenario == "warm" else (0, 5, None):
            for name in names:
                common = {
                    "scenario": scenario,
                    "support": size,
                    "algorithm": name,
                    "is_floor": name == "floor",
                }
                value = 1.0 if name == "floor" else 0.123 + (size or 0) / 100
                gains = {} if name == "floor" else {"gain": 0.2, "gain_low": 0.1, "gain_high": 0.3}
                made.append(make_row(**common, value=value, **gains))
                none = {
                    "gain": None,
                    "gain_low": None,
                    "gain_high": None,
                    "best_floor": None,
                    "higher_is_better": None,
                }
                for percent in (50, 90):
                    metric = f"interval_coverage@{percent}"
                    made.append(make_row(**common, metric=metric, value=percent / 100 - 0.02, **none))
    return made


def report_of(rows: list[Any]) -> Report:
    cells = [
        {"scenario": "warm", "support": None, "tasks": 3, "adapt_us": 8.25, "predict_us": 1.0, "rank_us": 0.0}
    ]
    timings = {"new": [{"seed": 0, "fit_seconds": 1.75, "cells": cells}]}
    return Report(rows, timings, {"dataset": {"name": "made-up"}}, {"torch": "9.8.7"})


def render(report: Report) -> str:
    return create_plugin_manager(installed=False).reporters.create("html").render(report)


def test_it_answers_first_and_shows_every_scenario_and_algorithm(make_row) -> None:
    page = Page(render(report_of(rows_of(make_row))))
    assert page.open == []
    texts = page.all_text()
    assert page.of("p")[1].startswith("On made-up (cold-start), new beats the best floor in 7 of 7 cells.")
    assert texts.index("beats the best floor") < texts.index("What to use") < texts.index("All figures")
    for expected in (
        "All figures: warm",
        "All figures: new-user",
        "All figures: strange",
        "new",
        "floor",
        "9.8.7",
    ):
        assert expected in texts
    assert "8.25" in texts and "1.75" in texts


def test_figures_are_drawn_where_there_is_something_to_draw(make_row) -> None:
    page = Page(render(report_of(rows_of(make_row))))
    labels = [attrs["aria-label"] for tag, attrs in page.elements if tag == "svg"]
    assert labels == [
        "rmse by support size, new-user",  # warm has one size
        "rmse by support size, strange",
        "coverage of predictive intervals by their level, warm",
        "coverage of predictive intervals by their level, new-user",
        "coverage of predictive intervals by their level, strange",
    ]


def test_values_carry_their_interval_and_what_was_found(make_row) -> None:
    page = Page(render(report_of(rows_of(make_row))))
    assert "0.123 ▲" in page.of("span")
    assert "0.900 … 1.100" in page.of("small")


def test_diagnostics_are_means_over_seeds_by_cell(make_row) -> None:
    report = report_of([make_row()])
    assert "Diagnostics" not in render(report)
    cell = {
        "scenario": "new-user",
        "support": 5,
        "tasks": 3,
        "adapt_us": 1.0,
        "predict_us": 1.0,
        "rank_us": 1.0,
    }
    seeds = [{"untrusted": 0.25, "r_hat": 1.5}, {"untrusted": 0.75, "r_hat": 1.25}]
    timings = {
        "chain": [
            {"seed": seed, "fit_seconds": 1.0, "cells": [{**cell, "diagnostics": found}]}
            for seed, found in enumerate(seeds)
        ],
        "weighted": [
            {
                "seed": 0,
                "fit_seconds": 1.0,
                "cells": [{**cell, "support": None, "diagnostics": {"untrusted": 0}}],
            }
        ],
    }
    page = render(replace(report, timings=timings))
    table = page.split("<h2>Diagnostics</h2>")[1].split("</section>")[0]
    assert "<th scope=col>r hat</th>" in table
    assert "<th scope=row>chain</th><td>new-user</td><td>5</td><td>0.5</td><td>1.38</td>" in table
    assert "<th scope=row>weighted</th><td>new-user</td><td>all</td><td>0</td><td>–</td>" in table


def test_it_needs_no_other_file_and_no_network(make_row) -> None:
    text = render(report_of(rows_of(make_row)))
    page = Page(text)
    assert "http" not in text and "@import" not in text
    names = {tag for tag, _ in page.elements}
    assert not names & {"link", "script", "img", "iframe", "object", "embed", "source"}
    for _, attrs in page.elements:
        assert "src" not in attrs
        assert (attrs.get("href") or "#").startswith("#")
    references = {attrs["href"][1:] for _, attrs in page.elements if attrs.get("href")}
    identifiers = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert references <= set(identifiers)
    assert len(identifiers) == len(set(identifiers))


def test_hostile_names_stay_text(make_row) -> None:
    rows = rows_of(make_row, names=(HOSTILE, "floor"), scenarios=("warm", HOSTILE))
    rows = [{**row, "dataset": HOSTILE, "protocol": HOSTILE} for row in rows]
    report = Report(rows, {HOSTILE: report_of([]).timings["new"]}, {HOSTILE: HOSTILE}, {HOSTILE: HOSTILE})
    text = render(report)
    assert "<script" not in text
    page = Page(text)
    assert page.open == []
    assert HOSTILE in page.all_text()


@pytest.mark.parametrize("names", [("floor",), ("new",), tuple(f"algorithm-{i}" for i in range(9))])
def test_any_mixture_of_algorithms_makes_a_page(make_row, names) -> None:
    page = Page(render(report_of(rows_of(make_row, names=names))))
    assert page.open == []
    assert all(name in page.all_text() for name in names)


def test_one_entity_and_missing_sizes_make_a_page(make_row) -> None:
    rows = [
        {**row, "low": None, "high": None, "gain_low": None, "gain_high": None} for row in rows_of(make_row)
    ]
    rows = [row for row in rows if not (row["algorithm"] == "new" and row["support"] == 5)]
    assert "–" in Page(render(report_of(rows))).of("td")


def test_an_empty_report_makes_a_page() -> None:
    assert "Nothing was evaluated." in Page(render(Report([], {}, {}, {}))).all_text()


def test_the_same_report_gives_the_same_bytes(make_row) -> None:
    report = report_of(rows_of(make_row))
    assert render(report) == render(report)


def test_matplotlib_is_only_imported_for_a_page() -> None:
    program = "import sys, metarec.pluginmanager as p; p.create_plugin_manager(); print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]

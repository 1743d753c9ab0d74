"""`report.json`, read back by other means."""

from __future__ import annotations

import json
import math

import polars as pl
import pytest

from metarec.evaluation import Report
from metarec.pluginmanager import create_plugin_manager

KEYS = [
    "dataset",
    "protocol",
    "seed",
    "list",
    "side",
    "algorithm",
    "is_floor",
    "scenario",
    "support",
    "metric",
]
KEYS += [
    "higher_is_better",
    "value",
    "low",
    "high",
    "level",
    "entities",
    "best_floor",
    "gain",
    "gain_low",
    "gain_high",
]


@pytest.fixture
def report(make_row) -> Report:
    rows = [make_row(support=None, low=math.nan), make_row(algorithm='quote" and café', value=math.inf)]
    timings = {"new": [{"seed": 0, "fit_seconds": math.nan, "cells": [{"adapt_us": 1.5}]}]}
    return Report(rows, timings, {"seeds": [0], "out": None}, {"metarec": "0"})


def written(report: Report, tmp_path) -> str:
    reporter = create_plugin_manager(installed=False).reporters.create("json")
    path = reporter.write(report, tmp_path)
    assert path == tmp_path / "report.json"
    return path.read_text(encoding="utf-8")


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_it_has_these_parts_and_rows_have_these_keys(report, tmp_path) -> None:
    content = json.loads(written(report, tmp_path), parse_constant=refuse)
    assert list(content) == ["rows", "timings", "config", "versions"]
    assert [list(row) for row in content["rows"]] == [KEYS, KEYS]


def test_what_is_read_back_is_what_was_reported(report, tmp_path) -> None:
    content = json.loads(written(report, tmp_path))
    first, second = content["rows"]
    assert first == {**report.rows[0], "low": None}
    assert second == {**report.rows[1], "value": None}
    assert content["timings"] == {"new": [{"seed": 0, "fit_seconds": None, "cells": [{"adapt_us": 1.5}]}]}
    assert (content["config"], content["versions"]) == (report.config, report.versions)


def test_rows_make_a_table(report, tmp_path) -> None:
    frame = pl.DataFrame(json.loads(written(report, tmp_path))["rows"])
    assert frame.columns == KEYS
    assert frame["support"].to_list() == [None, 3]


def test_a_report_without_rows_is_valid(tmp_path) -> None:
    assert json.loads(written(Report([], {}, {}, {}), tmp_path))["rows"] == []

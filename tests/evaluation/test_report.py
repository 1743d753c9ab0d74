"""Rows of a report: values, intervals, the best floor and the gain over it, from scores made by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import norm

from metarec.errors import MetarecError
from metarec.evaluation import (
    CellScores,
    Evaluation,
    Report,
    Reporter,
    Row,
    Score,
    compare,
    create_metrics,
    mean_over_seeds,
)
from metarec.pluginmanager import create_plugin_manager

METRICS = create_plugin_manager(installed=False).metrics
NAMES = ["rmse", "ndcg_linear@5", "coverage@5", "novelty@5"]
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


def evaluation(
    name: str, is_floor: bool, scores: dict[tuple[str, str], Score], entity: Any = None
) -> Evaluation:
    return Evaluation(name, is_floor, [cell(3, scores, entity)])


def cell(support: int, scores: dict[tuple[str, str], Score], entity: Any = None) -> CellScores:
    count = next(score.weight.numel() for score in scores.values())
    entity = torch.arange(count) if entity is None else entity
    return CellScores("new-user", support, "user", entity, scores, 0.0, 0.0, 0.0, {})


def score(values: list[float], weights: list[float] | None = None) -> Score:
    value = torch.tensor(values, dtype=torch.float64)
    return Score(value, torch.ones_like(value) if weights is None else torch.tensor(weights).double())


def rows_of(*evaluations: Evaluation, **options: Any) -> dict[tuple[str, str], Row]:
    rows = compare(evaluations, create_metrics(NAMES, METRICS), dataset="d", protocol="p", seed=0, **options)
    return {(row["algorithm"], row["metric"]): row for row in rows}


def test_a_row_has_these_keys_and_no_others() -> None:
    (row,) = rows_of(evaluation("a", False, {("query", "rmse"): score([1.0, 2.0])})).values()
    assert list(row) == KEYS


def test_rmse_pools_pairs_and_draws_the_root_last() -> None:
    """Squared errors 4 on one pair and 1 on three: √((4 + 3) / 4)."""
    rows = rows_of(evaluation("a", False, {("query", "rmse"): score([4.0, 1.0], [1, 3])}))
    assert rows["a", "rmse"]["value"] == pytest.approx(math.sqrt(7 / 4))
    assert rows["a", "rmse"]["low"] == pytest.approx(1.0)
    assert rows["a", "rmse"]["high"] == pytest.approx(2.0)


def test_gain_is_over_the_best_floor_in_the_metrics_own_direction() -> None:
    def both(name: str, is_floor: bool, error: float, ndcg: float) -> Evaluation:
        scores = {("query", "rmse"): score([error] * 4), ("catalogue", "ndcg_linear@5"): score([ndcg] * 4)}
        return evaluation(name, is_floor, scores)

    rows = rows_of(both("low", True, 4.0, 0.2), both("high", True, 1.0, 0.1), both("new", False, 0.25, 0.15))
    assert rows["new", "rmse"]["best_floor"] == "high"
    assert rows["new", "rmse"]["gain"] == pytest.approx(1.0 - 0.5)
    assert rows["new", "ndcg_linear@5"]["best_floor"] == "low"
    assert rows["new", "ndcg_linear@5"]["gain"] == pytest.approx(0.15 - 0.2)
    assert rows["high", "rmse"]["gain"] == 0.0
    assert rows["high", "rmse"]["gain_low"] == rows["high", "rmse"]["gain_high"] == 0.0


def test_a_small_but_steady_gain_is_significant_since_it_is_paired() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(200, generator=generator, dtype=torch.float64)
    floor = Score(base, torch.ones(200).double())
    steady = Score(
        base + 0.01 + 0.01 * torch.rand(200, generator=generator, dtype=torch.float64), floor.weight
    )
    key = ("catalogue", "ndcg_linear@5")
    row = rows_of(evaluation("floor", True, {key: floor}), evaluation("a", False, {key: steady}))["a", key[1]]
    assert row["low"] < float(base.mean()) < row["high"]  # apart they could not be told from each other
    assert 0.01 < row["gain_low"] < row["gain"] < row["gain_high"] < 0.02


def test_tasks_of_one_entity_are_resampled_together() -> None:
    """Two entities with two opposite tasks each: every resample has the same mean."""
    its = evaluation(
        "a", False, {("catalogue", "ndcg_linear@5"): score([0.0, 1.0, 0.8, 0.2])}, torch.tensor([7, 7, 9, 9])
    )
    row = rows_of(its)["a", "ndcg_linear@5"]
    assert (row["low"], row["value"], row["high"], row["entities"]) == (0.5, 0.5, 0.5, 2)


def test_undefined_tasks_are_left_out() -> None:
    key = ("catalogue", "ndcg_linear@5")
    rows = rows_of(
        evaluation("a", False, {key: score([math.nan, 0.5, 0.7]), ("query", "rmse"): score([math.nan] * 3)})
    )
    assert rows["a", "ndcg_linear@5"]["value"] == pytest.approx(0.6)
    assert rows["a", "ndcg_linear@5"]["entities"] == 2
    assert ("a", "rmse") not in rows


def test_what_a_metric_does_not_have_is_none() -> None:
    scores = {
        ("catalogue", "coverage@5"): Score(torch.tensor(0.25).double(), torch.ones(3).double()),
        ("catalogue", "novelty@5"): score([1.0, 2.0, 3.0]),
    }
    rows = rows_of(evaluation("floor", True, scores), evaluation("a", False, scores))
    coverage, novelty = rows["a", "coverage@5"], rows["a", "novelty@5"]
    assert (coverage["value"], coverage["low"], coverage["gain"], coverage["entities"]) == (
        0.25,
        None,
        None,
        3,
    )
    assert novelty["low"] is not None
    assert (novelty["best_floor"], novelty["gain"], novelty["gain_low"]) == (None, None, None)


def test_one_entity_has_no_interval() -> None:
    row = rows_of(evaluation("a", False, {("query", "rmse"): score([1.0])}))["a", "rmse"]
    assert (row["value"], row["low"], row["high"]) == (1.0, None, None)


def test_without_a_floor_there_is_no_gain() -> None:
    row = rows_of(evaluation("a", False, {("query", "rmse"): score([1.0, 2.0])}))["a", "rmse"]
    assert (row["best_floor"], row["gain"], row["gain_low"]) == (None, None, None)


def test_gains_are_corrected_within_an_algorithm_and_metric_over_its_cells() -> None:
    """Intervals of ± z standard errors, z at 1 − .05/5, 1 − .05/4 and so on down the p values."""
    key = ("query", "mse")
    generator = torch.Generator().manual_seed(0)
    floor, new = (Evaluation(name, name == "floor", []) for name in ("floor", "new"))
    errors = []
    for support, gain in enumerate([0.08, 0.0, 0.05, 0.02, -0.07]):
        base = torch.rand(50, generator=generator, dtype=torch.float64)
        gains = gain + 0.1 * torch.randn(50, generator=generator, dtype=torch.float64)
        errors.append(float(gains.std(correction=0)) / 50**0.5)
        for its, value in ((floor, base + gains), (new, base)):
            its.cells.append(cell(support, {key: Score(value, torch.ones(50).double())}))
    rows = compare(
        [floor, new], create_metrics(["mse"], METRICS), dataset="d", protocol="p", seed=0, resamples=20_000
    )
    rows = [row for row in rows if row["algorithm"] == "new"]
    ratios = [abs(row["gain"]) / error for row, error in zip(rows, errors, strict=True)]
    shares = 5
    for index in sorted(range(5), key=ratios.__getitem__, reverse=True):
        row, reach = rows[index], norm.isf(0.05 / shares / 2)
        assert row["gain_high"] - row["gain"] == pytest.approx(reach * errors[index], rel=0.03)
        assert row["gain"] - row["gain_low"] == pytest.approx(row["gain_high"] - row["gain"])
        shares -= ratios[index] > reach
    assert shares == 2  # three were found


def test_a_constant_gain_within_rounding_is_none() -> None:
    key = ("query", "rmse")
    for squared, found in ((4.0 * (1 - 1e-8), False), (4.0 * (1 - 1e-4), True)):
        rows = rows_of(
            evaluation("floor", True, {key: score([4.0] * 9)}),
            evaluation("new", False, {key: score([squared] * 9)}),
        )
        (row,) = (row for row in rows.values() if row["algorithm"] == "new")
        assert row["gain"] > 0 and (row["gain_low"] > 0) == found


def test_mean_over_seeds() -> None:
    key = ("query", "rmse")
    floor = evaluation("floor", True, {key: score([4.0] * 9)})
    new = evaluation("new", False, {key: score([1.0] * 9)})
    one = list(rows_of(floor, new).values())
    other: list[Row] = [{**row, "seed": 1, "value": row["value"] + 1, "gain_low": -2.0} for row in one]
    assert mean_over_seeds(one) == one
    mean = mean_over_seeds(one + other)[1]
    assert (mean["algorithm"], mean["value"], mean["gain"]) == ("new", 1.5, 1.0)
    assert mean["gain_low"] == pytest.approx(-0.5, abs=1e-5)
    assert mean["best_floor"] == "floor"
    unbounded: list[Row] = [{**row, "gain_low": None} for row in other]
    assert mean_over_seeds(one + unbounded)[1]["gain_low"] is None


class Words(Reporter):
    """Writes how many rows there are; only for tests."""

    name = "words"
    file_name = "words.txt"

    def render(self, report: Report) -> str:
        """The number of rows."""
        return f"{len(report.rows)} rows\n"


def test_a_reporter_writes_its_file(tmp_path: Path) -> None:
    path = Words().write(Report([], {}, {}, {}), tmp_path)
    assert path.read_text() == "0 rows\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        MetarecError, match=r"missing/words.txt: cannot be written: No such file or directory$"
    ):
        Words().write(Report([], {}, {}, {}), tmp_path / "missing")

"""The benchmark of quality, on tiny settings: a plugin takes the place of the default algorithm."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from metarec import load_dataset
from metarec.config import RunConfig

ROOT = Path(__file__).parents[2]
PLUGIN = ("--plugin", str(ROOT / "examples" / "shrunk_mean.py"))


@pytest.fixture(scope="module")
def quality() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)  # benchmarks are not installed
        return importlib.import_module("benchmarks.quality")


def shown(show: Any, result: dict[str, Any]) -> str:
    console = Console(width=120, force_terminal=False)
    with console.capture() as capture:
        show(result, console)
    return capture.get()


def test_embedded_counts_cells_by_metric(quality) -> None:
    config = RunConfig.of(
        {
            "protocol": {"name": "cold-start", "options": {"support_sizes": [0, "all"]}},
            "scenarios": ["new-item"],
            "algorithms": ["shrunk-mean", "random", "global-mean"],
            "metrics": list(quality.DECIDING),
        }
    )
    result = quality.embedded(config, *PLUGIN, algorithm="shrunk-mean")
    assert json.loads(json.dumps(result)) == result
    assert [tally["metric"] for tally in result["tallies"]] == list(quality.DECIDING)
    assert all(tally["better"] + tally["level"] + tally["worse"] == 2 for tally in result["tallies"])
    (rmse,) = (tally for tally in result["tallies"] if tally["metric"] == "rmse")
    # At no rating it is the global mean, with all of them it is better.
    assert (rmse["better"], rmse["worse"]) == (1, 0)
    assert result["seconds"] > 0
    text = shown(quality.show_embedded, result)
    assert "shrunk-mean beside the best floor" in text and "ndcg_linear@5" in text


def write_movielens(folder: Path) -> None:
    """Ratings of 45 users for 60 films by what both are like, and MetaHIN's files that split them in four."""
    random = np.random.default_rng(0)
    liking = 3 + random.normal(size=(45, 1)) + random.normal(size=60) + 0.5 * random.normal(size=(45, 60))
    ratings = np.clip(np.rint(liking), 1, 5).astype(int)
    lines = [f"{u + 1}::{i + 1}::{ratings[u, i]}::0" for u in range(45) for i in range(60)]
    (folder / "ratings.dat").write_text("\n".join(lines), encoding="latin-1")
    (folder / "users.dat").write_text(
        "\n".join(f"{u + 1}::F::25::3::55117" for u in range(45)), encoding="latin-1"
    )
    films = [f"{i + 1}::Film {i} (1990)::Drama|Comedy" for i in range(60)]
    (folder / "movies.dat").write_text("\n".join(films), encoding="latin-1")
    parts = {
        "meta_training": (range(30), range(20)),
        "warm_up": (range(30), range(20, 40)),
        "user_cold_testing": (range(30, 45), range(20)),
        "item_cold_testing": (range(30), range(40, 60)),
        "user_and_item_cold_testing": (range(30, 45), range(40, 60)),
    }
    (folder / "metahin_splits").mkdir()
    for name, (users, items) in parts.items():
        pairs = {str(u + 1): [str(i + 1) for i in items] for u in users}
        (folder / "metahin_splits" / f"{name}.json").write_text(json.dumps(pairs))


def test_movielens_has_every_scenario_and_metric(quality, tmp_path) -> None:
    write_movielens(tmp_path)
    config = quality.metahin(tmp_path, seeds=[0, 1], algorithms=["shrunk-mean", "global-mean", "random"])
    result = quality.movielens(config, *PLUGIN, algorithm="shrunk-mean")
    assert json.loads(json.dumps(result)) == result
    found = {(row["scenario"], row["metric"]): row for row in result["rows"]}
    assert {metric for _, metric in found} == {"mae", "mae_median", *quality.DECIDING, quality.COVERAGE}
    assert {scenario for scenario, _ in found} == {"warm", "new-user", "new-item", "new-both"}
    assert found["new-user", "rmse"]["gain_low"] > 0  # users differ by one whole star
    assert len(result["targets"]) == 9
    text = shown(quality.show_movielens, result)
    assert "means over 2 draws" in text and "new-user: mae at most 0.700" in text


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, []),
        ({("new-user", "mae"): {"value": 0.71}}, ["new-user: mae at most 0.700"]),
        ({("new-item", "rmse"): {"gain_low": -0.01}}, ["new-item: gain in rmse excludes zero, from"]),
        ({("new-both", "mae"): {"gain_high": -0.01}}, ["new-both: mae not worse, gain up to"]),
        (
            {("new-item", "interval_coverage@90"): {"value": 0.93}},
            ["new-item: 90 % intervals hold 88 to 92 % of ratings"],
        ),
    ],
)
def test_a_target_that_is_missed_is_named(quality, make_row, change, missed) -> None:
    rows = []
    for scenario in ("new-user", "new-item", "new-both"):
        for metric in ("mae", "rmse", quality.COVERAGE):
            good = {"value": 0.9 if metric == quality.COVERAGE else 0.69, "gain_low": 0.01}
            rows.append(
                make_row(scenario=scenario, metric=metric, **good | change.get((scenario, metric), {}))
            )
    targets = quality._movielens_targets(rows, 20.0)
    assert [target.what for target in targets if not target.met] == missed


def test_a_run_that_fails_says_why(quality) -> None:
    with pytest.raises(SystemExit, match="error: unknown algorithm 'nope'"):
        quality.run(RunConfig.of({"algorithms": ["nope"]}))


def test_the_catalogue_is_beside_the_floors(quality, tmp_path) -> None:
    write_movielens(tmp_path)
    entry = quality.entry(quality.metahin(tmp_path, seeds=[1]), "shrunk-mean", *PLUGIN)
    assert json.loads(json.dumps(entry)) == entry
    assert (entry["protocol"], entry["algorithm"], entry["seeds"]) == ("metahin", "shrunk-mean", [1])
    assert entry["dataset"] == "movielens-1m" and all(set(row) == set(quality.KEPT) for row in entry["rows"])
    (rmse,) = (r for r in entry["rows"] if (r["scenario"], r["metric"]) == ("new-both", "rmse"))
    assert rmse["gain_low"] <= rmse["gain"] <= rmse["gain_high"]
    text = shown(lambda result, console: quality.show_catalogue([result], "metahin", console), entry)
    assert "shrunk-mean" in text and "new-user: least mae below 0.690" in text
    assert {"bayesian", "maml"} <= set(quality.learners())
    assert "bias" not in quality.learners()


def test_what_a_file_of_results_holds_stays_but_for_what_is_run(quality, tmp_path, monkeypatch) -> None:
    def entry(config: RunConfig, name: str, dataset: str = "new", **_: Any) -> dict[str, Any]:
        ran = {"dataset": dataset, "protocol": config.protocol.name, "algorithm": name}
        return {**ran, "fit_seconds": 1.0, "rows": []}

    monkeypatch.setattr(quality, "entry", entry)
    (tmp_path / "ml-100k").mkdir()
    before = [entry(quality.warm(tmp_path), name, "old") for name in ("mf", "bayesian")]
    file = tmp_path / "quality.json"
    file.write_text(json.dumps({"embedded": 1, "catalogue": before}))
    quality.main(file, tmp_path, only="warm,tiktok", algorithms="mf,meta-cf")
    found = json.loads(file.read_text())
    assert found["embedded"] == 1 and found["catalogue"][0] == before[1]
    assert [(one["dataset"], one["algorithm"]) for one in found["catalogue"][1:]] == [
        ("new", "mf"),
        ("new", "meta-cf"),
    ]


def test_data_that_is_there_is_read(quality, movielens, tiktok) -> None:
    for config in (quality.warm(movielens / "ml-100k"), quality.tiktok(tiktok)):
        assert len(load_dataset(config.dataset.name, **config.dataset.options)) in (100_000, 68_722)


def test_targets_of_the_catalogue(quality) -> None:
    def entry(name: str, mae: float, gain: float) -> dict[str, Any]:
        rows = [
            {"scenario": scenario, "metric": metric, "value": mae, "gain": gain}
            for scenario in quality.COLD
            for metric in ("mae", "rmse")
        ]
        return {"algorithm": name, "rows": rows}

    def missed(entries: list[dict[str, Any]], protocol: str) -> list[str]:
        return [target.what for target in quality.catalogue_targets(entries, protocol) if not target.met]

    good, poor = entry("melu", 0.68, 0.01), entry("reptile", 0.87, -0.01)
    below = [f"reptile, {scenario}: rmse less than every floor's, by" for scenario in quality.COLD]
    assert missed([good, poor], "metahin") == missed([good, poor], "melu") == below
    assert set(missed([entry("meta-cf", 0.74, 0.01)], "warm")) == {"meta-cf: mae at most 0.737, Surprise's"}
    worst = [entry("melu", 0.87, 0.01)]
    assert missed(worst, "melu") == ["melu, new-user: mae at most 0.740"]
    assert missed(worst, "metahin") == ["new-user: least mae below 0.690", "new-both: least mae below 0.860"]

"""``python -m benchmarks.quality [--only PARTS] [--json FILE] [--data DIR]``: does every algorithm beat the floors?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.files import write_json
from metarec.config import RunConfig
from metarec.evaluation import Row, deciding, mean_over_seeds, support_name, tallies
from metarec.experiment import DEFAULT_ALGORITHM
from metarec.pluginmanager import plugin_manager

MOST_SECONDS = 120.0
MOST_FIT_SECONDS = 30.0
SEEDS = (0, 1, 2)
DECIDING = ("rmse", "crps", "nll", "ndcg_linear@5")
COVERAGE = "interval_coverage@90"
COLD = ("new-user", "new-item", "new-both")
KEPT = (
    "scenario",
    "support",
    "metric",
    "value",
    "low",
    "high",
    "best_floor",
    "gain",
    "gain_low",
    "gain_high",
)
SURPRISE_MAE = 0.737
FACTORISATIONS = ("mf", "meta-cf")
BEST_MAE = {"new-user": 0.69, "new-item": 0.88, "new-both": 0.86}


@dataclass(frozen=True)
class Target:
    """What we mean to reach, what was reached, and whether that is enough."""

    what: str
    value: float
    met: bool


def main(
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write the results to this file too; what else it holds stays."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with ml-1m (and MetaHIN's splits), ml-100k and tiktok; default: METAREC_TEST_DATA."
        ),
    ] = None,
    only: Annotated[
        str, typer.Option(help="Some of embedded, movielens, melu, metahin, warm, tiktok, between commas.")
    ] = "embedded,movielens,melu,metahin",
    algorithms: Annotated[
        str | None, typer.Option(help="Of the catalogue only these, separated by commas.")
    ] = None,
) -> None:
    """Run the default algorithm and all floors on the embedded data, and all algorithms on other data that is there.

    The file is written after each algorithm.
    """
    console = Console(highlight=False)
    results = json.loads(json_file.read_text(encoding="utf-8")) if json_file and json_file.exists() else {}
    folder = data or Path(os.environ.get("METAREC_TEST_DATA", "."))
    for part in only.split(","):
        if part == "embedded":
            results["embedded"] = embedded(RunConfig())
            show_embedded(results["embedded"], console)
        elif not (folder / FOLDERS[part]).is_dir():
            console.print(
                f"{part} was left out: {folder} has no {FOLDERS[part]} (--data or METAREC_TEST_DATA)."
            )
        elif part == "movielens":
            results["movielens"] = movielens(metahin(folder / FOLDERS[part]))
            show_movielens(results["movielens"], console)
        else:
            config = CATALOGUE[part](folder / FOLDERS[part])
            for name in algorithms.split(",") if algorithms else learners(part):
                found = entry(config, name, floors=FLOORS.get(part))
                same = [one for one in results.get("catalogue", ()) if _identity(one) != _identity(found)]
                results["catalogue"] = [*same, found]
                _write(results, json_file)
            show_catalogue(results["catalogue"], config.protocol.name, console)
        _write(results, json_file)


def _write(results: dict[str, Any], json_file: Path | None) -> None:
    if json_file is not None:
        write_json(json_file, results)


def _identity(entry: dict[str, Any]) -> tuple[str, str]:
    return entry["protocol"], entry["algorithm"]


def learners(part: str = "metahin") -> list[str]:
    """Every algorithm that fits the ratings of a part and is no floor."""
    feedback = "implicit" if part == "tiktok" else "explicit"
    return [
        name
        for name, kind in plugin_manager().algorithms.items()
        if feedback in kind.feedback and not kind.is_floor
    ]


def melu(folder: Path, *, seeds: Sequence[int] = SEEDS) -> RunConfig:
    """MovieLens 1M by MeLU's protocol, one split per seed."""
    return metahin(folder, seeds=seeds, protocol={"name": "melu"})


def metahin(folder: Path, *, seeds: Sequence[int] = SEEDS, **values: Any) -> RunConfig:
    """MovieLens 1M by MetaHIN's split, one draw of the query per seed."""
    return RunConfig.of(
        {
            "dataset": {"name": "movielens", "options": {"path": str(folder)}},
            "protocol": {"name": "metahin", "options": {"path": str(folder / "metahin_splits")}},
            "metrics": ["mae", "mae_median", *DECIDING, COVERAGE],
            "seeds": list(seeds),
            **values,
        }
    )


def warm(folder: Path, *, seeds: Sequence[int] = range(5)) -> RunConfig:
    """MovieLens 100K in five parts, each predicted from the others."""
    return RunConfig.of(
        {
            "dataset": {"name": "movielens", "options": {"path": str(folder)}},
            "protocol": {"name": "warm"},
            "metrics": ["mae", "rmse"],
            "seeds": list(seeds),
        }
    )


def tiktok(folder: Path, *, seeds: Sequence[int] = SEEDS) -> RunConfig:
    """TikTok: who will see a new video, by what is seen and heard in it and the first who did."""
    vectors = {name: str(folder / f"{name}_feat.npy") for name in ("image", "audio")}
    return RunConfig.of(
        {
            "dataset": {
                "name": "table",
                "options": {
                    "path": str(folder / "interactions.csv.gz"),
                    "user": "user_id",
                    "item": "item_id",
                    "feedback": "implicit",
                    "vectors": vectors,
                },
            },
            "protocol": {"name": "cold-start", "options": {"new_users": 0.0, "support_sizes": [0, 1, 3, 5]}},
            "scenarios": ["new-item"],
            "metrics": ["ndcg_linear@20", "recall@20"],
            "seeds": list(seeds),
        }
    )


FOLDERS = {"movielens": "ml-1m", "melu": "ml-1m", "metahin": "ml-1m", "warm": "ml-100k", "tiktok": "tiktok"}
# Beside popularity, an algorithm that knows how active each user is shows little of what content says of a video.
FLOORS = {"tiktok": ("random",)}
CATALOGUE: dict[str, Callable[[Path], RunConfig]] = {
    "melu": melu,
    "metahin": metahin,
    "warm": warm,
    "tiktok": tiktok,
}


def run(config: RunConfig, *arguments: str) -> tuple[float, dict[str, Any]]:
    """Run the command ``metarec run`` as a user does; give its seconds, all included, and its report."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "run.toml").write_text(config.to_toml(), encoding="utf-8")
        command = [sys.executable, "-P", "-c", "from metarec.cli import main; main()", *arguments]
        begin = time.perf_counter()
        done = subprocess.run(
            [*command, "run", str(folder / "run.toml"), "--out", str(folder / "out")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - begin
        if done.returncode:
            sys.exit(done.stderr.strip())
        return seconds, json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))


def embedded(config: RunConfig, *arguments: str, algorithm: str = DEFAULT_ALGORITHM) -> dict[str, Any]:
    """Seconds of the run, and in how many cells the algorithm is better and worse than the best floor."""
    seconds, report = run(config, *arguments)
    counted = [tally for tally in deciding(tallies(report["rows"])) if tally.algorithm == algorithm]
    better, cells = sum(tally.better for tally in counted), sum(tally.cells for tally in counted)
    worse = sum(tally.worse for tally in counted)
    targets = [
        Target(f"metarec run takes at most {MOST_SECONDS:g} s", seconds, seconds <= MOST_SECONDS),
        Target("no cell is significantly worse than the best floor", worse, worse == 0),
        Target("most cells are significantly better", better, better > cells / 2),
    ]
    return {
        "algorithm": algorithm,
        "seconds": seconds,
        "tallies": [asdict(tally) for tally in counted],
        "targets": [asdict(target) for target in targets],
    }


def movielens(config: RunConfig, *arguments: str, algorithm: str = DEFAULT_ALGORITHM) -> dict[str, Any]:
    """Values, paired gains over the best floor and coverage per scenario, means over the seeds; seconds to fit."""
    _, report = run(config, *arguments)
    rows = [row for row in mean_over_seeds(report["rows"]) if row["algorithm"] == algorithm]
    fits = [its["fit_seconds"] for its in report["timings"][algorithm]]
    fit_seconds = sum(fits) / len(fits)
    return {
        "algorithm": algorithm,
        "seeds": list(config.seeds),
        "fit_seconds": fit_seconds,
        "rows": rows,
        "targets": [asdict(target) for target in _movielens_targets(rows, max(fits))],
    }


def entry(
    config: RunConfig, algorithm: str, *arguments: str, floors: Sequence[str] | None = None
) -> dict[str, Any]:
    """An algorithm beside floors, by default all: values, gains over the best one, means over the seeds; seconds."""
    if floors is None:
        floors = [name for name, kind in plugin_manager().algorithms.items() if kind.is_floor]
    chosen = RunConfig.of(
        {**config.model_dump(mode="json", exclude_none=True), "algorithms": [*floors, algorithm]}
    )
    _, report = run(chosen, *arguments)
    fits = [its["fit_seconds"] for its in report["timings"][algorithm]]
    rows = [row for row in mean_over_seeds(report["rows"]) if row["algorithm"] == algorithm]
    return {
        "dataset": rows[0]["dataset"],
        "protocol": config.protocol.name,
        "algorithm": algorithm,
        "seeds": list(config.seeds),
        "fit_seconds": sum(fits) / len(fits),
        "rows": [
            {name: value for name, value in row.items() if name in KEPT}
            for row in rows
            if row["metric"] not in ("mae_median", COVERAGE)
        ],
    }


def _movielens_targets(rows: Sequence[Row], fit_seconds: float) -> list[Target]:
    found = {(row["scenario"], row["metric"]): row for row in rows}
    mae = found["new-user", "mae"]["value"]
    targets = [
        Target(f"fits in at most {MOST_FIT_SECONDS:g} s", fit_seconds, fit_seconds <= MOST_FIT_SECONDS),
        Target("new-user: mae at most 0.700", mae, mae <= 0.7),
    ]
    for metric in ("rmse", "mae"):
        low, high = (
            found["new-item", metric]["gain_low"] or 0.0,
            found["new-both", metric]["gain_high"] or 0.0,
        )
        targets.append(Target(f"new-item: gain in {metric} excludes zero, from", low, low > 0))
        targets.append(Target(f"new-both: {metric} not worse, gain up to", high, high >= 0))
    for scenario in ("new-user", "new-item", "new-both"):
        share = found[scenario, COVERAGE]["value"]
        targets.append(
            Target(f"{scenario}: 90 % intervals hold 88 to 92 % of ratings", share, 0.88 <= share <= 0.92)
        )
    return targets


def show_embedded(result: dict[str, Any], console: Console) -> None:
    """Print the cells by metric."""
    console.print(
        f"[bold]Embedded data[/]: {result['algorithm']} beside the best floor, {result['seconds']:.1f} s"
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("metric", "better", "not told apart", "worse"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for tally in result["tallies"]:
        table.add_row(tally["metric"], *(str(tally[name]) for name in ("better", "level", "worse")))
    console.print(table)
    _show_targets(result["targets"], console)


def show_movielens(result: dict[str, Any], console: Console) -> None:
    """Print the figures by scenario."""
    draws = f"means over {len(result['seeds'])} draws of the query"
    name, seconds = result["algorithm"], result["fit_seconds"]
    console.print(f"[bold]MovieLens 1M, MetaHIN's split[/]: {name}, {draws}; fits in {seconds:.1f} s")
    table = Table(box=None, padding=(0, 1, 0, 0))
    for heading in ("scenario", "metric", "value", "gain over best floor", "best floor"):
        table.add_column(heading, justify="right" if heading == "value" else "left", no_wrap=True)
    for row in result["rows"]:
        table.add_row(
            row["scenario"], row["metric"], f"{row['value']:.4f}", _gain(row), row["best_floor"] or ""
        )
    console.print(table)
    _show_targets(result["targets"], console)


def show_catalogue(entries: Sequence[dict[str, Any]], protocol: str, console: Console) -> None:
    """Print a line per algorithm, scenario and support size, and what was meant to be reached."""
    entries = [one for one in entries if one["protocol"] == protocol]
    metrics = list(dict.fromkeys(row["metric"] for one in entries for row in one["rows"]))
    console.print(f"[bold]{entries[0]['dataset']}, {protocol}[/]: value, and gain over the best floor")
    table = Table(box=None, padding=(0, 1, 0, 0))
    for heading in ("algorithm", "fit, s", "scenario", "support", *metrics):
        table.add_column(
            heading, justify="right" if heading in ("fit, s", "support") else "left", no_wrap=True
        )
    for one in entries:
        cells: dict[tuple[str, int | None], dict[str, Row]] = {}
        for row in one["rows"]:
            cells.setdefault((row["scenario"], row["support"]), {})[row["metric"]] = row
        for (scenario, support), found in cells.items():
            table.add_row(
                one["algorithm"],
                f"{one['fit_seconds']:.0f}",
                scenario,
                support_name(support),
                *(_value(found.get(metric)) for metric in metrics),
            )
    console.print(table)
    _show_targets([asdict(target) for target in catalogue_targets(entries, protocol)], console)


def catalogue_targets(entries: Sequence[dict[str, Any]], protocol: str) -> list[Target]:
    """What the algorithms of a protocol were meant to reach."""
    rows = [(one["algorithm"], row) for one in entries for row in one["rows"]]
    targets = [
        Target(f"{name}, {row['scenario']}: rmse less than every floor's, by", row["gain"], row["gain"] > 0)
        for name, row in rows
        if row["metric"] == "rmse" and row["gain"] is not None
    ]
    mae = [(name, row["scenario"], row["value"]) for name, row in rows if row["metric"] == "mae"]
    if protocol == "melu":
        reached = [value for name, scenario, value in mae if (name, scenario) == ("melu", "new-user")]
        targets += [Target("melu, new-user: mae at most 0.740", value, value <= 0.74) for value in reached]
    elif protocol == "warm":
        targets += [
            Target(f"{name}: mae at most {SURPRISE_MAE}, Surprise's", value, value <= SURPRISE_MAE)
            for name, _, value in mae
            if name in FACTORISATIONS
        ]
    elif protocol == "metahin":
        for scenario in COLD:
            best = min((value for _, its, value in mae if its == scenario), default=float("nan"))
            most = BEST_MAE[scenario]
            targets.append(Target(f"{scenario}: least mae below {most:.3f}", best, best < most))
    return targets


def _gain(row: Row) -> str:
    if row["gain"] is None or row["gain_low"] is None or row["gain_high"] is None:
        return ""
    return f"{row['gain']:+.3f} ({row['gain_low']:+.3f}…{row['gain_high']:+.3f})"


def _value(row: Row | None) -> Text:
    """A value and its gain: green where that is significant, red where it is a loss that is."""
    if row is None:
        return Text("–")
    if row["gain"] is None or row["gain_low"] is None or row["gain_high"] is None:
        return Text(f"{row['value']:.3f}")
    style = "green" if row["gain_low"] > 0 else "red" if row["gain_high"] < 0 else ""
    return Text.assemble(f"{row['value']:.3f} ", (f"{row['gain']:+.3f}", style))


def _show_targets(targets: Sequence[dict[str, Any]], console: Console) -> None:
    for target in targets:
        style, word = ("green", "met") if target["met"] else ("red", "missed")
        console.print(Text.assemble("  ", (word, style), f"  {target['what']}: {target['value']:.4g}"))
    console.print()


if __name__ == "__main__":
    typer.run(main)

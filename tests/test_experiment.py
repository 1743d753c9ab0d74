"""A run does what its configuration says, tells the plugins, and reports what the parts give by themselves."""

import json
import math
from pathlib import Path

import pytest
import torch

import metarec
from metarec import Algorithm, RunConfig, create_algorithm, hookimpl, load, run_experiment, split
from metarec.data import Reader
from metarec.errors import ConfigError, MetarecError
from metarec.evaluation import create_metrics, evaluate
from metarec.experiment import DEFAULT_ALGORITHM, Experiment
from metarec.learning import Run, Silent
from metarec.pluginmanager import create_plugin_manager
from metarec.testing import small_world
from metarec.testing.pretend_device import pretend_device

BASE = {"dataset": "small", "algorithms": ["bias", "global-mean"], "metrics": ["rmse"], "reporters": ["json"]}


class Small(Reader):
    name = "small"

    def __init__(self, *, implicit: bool = False) -> None:
        self.implicit = implicit

    def read(self):
        return small_world(implicit=self.implicit).dataset


class Unprepared(Algorithm):
    """Must not be fitted: a test uses it to see that nothing was read before a mistake was found."""

    name = "unprepared"

    def fit(self, train, *, valid=None, run=metarec.Run()):
        raise AssertionError("fitted")

    def adapt(self, support): ...

    def predict(self, adapted, query): ...


class Watching:
    """A plugin that brings the data set and notes what it is told."""

    def __init__(self):
        self.told = []

    @hookimpl
    def register_datasets(self, register):
        register(Small)

    @hookimpl
    def register_algorithms(self, register):
        register(Unprepared)

    @hookimpl
    def configure(self, config):
        self.told.append(("configure", config.seeds))

    @hookimpl
    def before_fit(self, algorithm, train):
        self.told.append(("before_fit", algorithm.name, len(train), bool(algorithm.state())))

    @hookimpl
    def after_fit(self, algorithm, train):
        self.told.append(("after_fit", algorithm.name, len(train), bool(algorithm.state())))

    @hookimpl
    def after_evaluate(self, report):
        self.told.append(("after_evaluate", len(report.rows)))


class Told(Silent):
    """A progress that notes what it shows."""

    def __init__(self):
        self.shown = []

    def track(self, steps, *, description, total=None):
        self.shown.append((description, total))
        yield from steps


@pytest.fixture
def watching():
    return Watching()


@pytest.fixture
def plugins(watching):
    manager = create_plugin_manager(installed=False)
    manager.register(watching, name="watching")
    return manager


def run(plugins, **values):
    return run_experiment(RunConfig.of({**BASE, **values}), plugins=plugins)


class TestReport:
    def test_values_are_those_of_the_parts(self, plugins):
        report = run(plugins, seeds=[3])
        known = split(small_world().dataset, seed=3)
        metrics = create_metrics(["rmse"], plugins.metrics)
        for name in ("bias", "global-mean"):
            by_hand = evaluate(create_algorithm(name).fit(known.train), known, metrics)
            rows = [row for row in report.rows if row["algorithm"] == name]
            assert len(rows) == len(by_hand.cells) > 4
            for row, cell in zip(rows, by_hand.cells, strict=True):
                score = cell.scores["query", "rmse"]
                mean = float((score.value * score.weight).sum() / score.weight.sum())
                assert (row["scenario"], row["support"], row["seed"]) == (cell.scenario, cell.support, 3)
                assert row["value"] == pytest.approx(math.sqrt(mean))

    def test_one_seed_gives_one_report(self, plugins):
        assert run(plugins).rows == run(plugins).rows
        assert run(plugins).rows != run(plugins, seeds=[1]).rows

    def test_each_seed_is_split_and_fitted_anew(self, plugins):
        both = run(plugins, seeds=[0, 1])
        assert both.rows == run(plugins, seeds=[0]).rows + run(plugins, seeds=[1]).rows
        assert [timing["seed"] for timing in both.timings["bias"]] == [0, 1]

    def test_only_the_scenarios_asked_for(self, plugins):
        rows = run(plugins, scenarios=["new-user"]).rows
        everything = [row for row in run(plugins).rows if row["scenario"] == "new-user"]
        assert {row["scenario"] for row in rows} == {"new-user"}
        assert [row["value"] for row in rows] == [row["value"] for row in everything]

    def test_records_configuration_and_versions(self, plugins):
        report = run(plugins, algorithms=[{"name": "bias", "options": {"iterations": 7}}])
        assert report.config["algorithms"] == [{"name": "bias", "options": {"iterations": 7}}]
        assert report.versions["metarec"] == metarec.__version__
        assert report.versions["torch"] == torch.__version__

    def test_without_algorithms_it_is_all_floors_and_the_default(self, plugins):
        experiment = Experiment(RunConfig.of({"dataset": "small"}), plugins=plugins)
        floors = {name for name, kind in plugins.algorithms.items() if kind.is_floor}
        assert {choice.name for choice in experiment.choices} == floors | {DEFAULT_ALGORITHM}
        assert {"bias", "popularity", "random"} <= floors

    def test_by_default_what_cannot_fit_the_feedback_is_left_out(self, plugins):
        values = {"dataset": {"name": "small", "options": {"implicit": True}}, "metrics": ["hit@3"]}
        report = run_experiment(RunConfig.of({**values, "scenarios": ["warm"]}), plugins=plugins)
        suited = {
            name for name, kind in plugins.algorithms.items() if kind.is_floor and "implicit" in kind.feedback
        }
        assert {row["algorithm"] for row in report.rows} == suited | {DEFAULT_ALGORITHM}


class TestHooks:
    def test_are_called_in_order_around_each_fit(self, plugins, watching):
        report = run(plugins)
        size = len(split(small_world().dataset).train)
        assert watching.told == [
            ("configure", (0,)),
            ("before_fit", "bias", size, False),
            ("after_fit", "bias", size, True),
            ("before_fit", "global-mean", size, False),
            ("after_fit", "global-mean", size, True),
            ("after_evaluate", len(report.rows)),
        ]

    def test_progress_shows_every_part(self, plugins, tmp_path):
        progress = Told()
        config = RunConfig.of({**BASE, "seeds": [0, 1], "out": str(tmp_path)})
        run_experiment(config, plugins=plugins, progress=progress)
        assert progress.shown[:3] == [("read small", 1), ("seeds", 2), ("split", 1)]
        shown = {description for description, _ in progress.shown}
        assert shown >= {"algorithms", "fit bias", "evaluate bias", "compare", "write"}


def test_another_device_gives_the_same_report_and_artifacts_for_the_cpu(plugins, tmp_path):
    algorithms = ["bias", "item-knn", {"name": "bayesian", "options": {"rank": 2}}]
    expected = run(plugins, algorithms=algorithms)
    with pretend_device() as device:
        found = run(plugins, algorithms=algorithms, device=str(device), out=str(tmp_path / "out"))
        there = load(tmp_path / "out" / "artifacts" / "bayesian", device=device).adapt({}).recommend(1)
    assert found.rows == expected.rows
    assert there == load(tmp_path / "out" / "artifacts" / "bayesian").adapt({}).recommend(1)


class TestMistakes:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ({"dataset": "smal"}, "unknown dataset 'smal': did you mean 'small'?"),
            ({"dataset": {"name": "small", "options": {"implict": True}}}, "did you mean 'implicit'?"),
            ({"protocol": "cold_start"}, "did you mean 'cold-start'?"),
            ({"algorithms": ["unprepared", "bais"]}, "did you mean 'bias'?"),
            ({"scenarios": ["new-users"]}, "did you mean 'new-user'?"),
            ({"metrics": ["rsme"]}, "did you mean 'rmse'?"),
            ({"reporters": ["jsn"]}, "did you mean 'json'?"),
            ({"device": "gpu"}, "unknown device 'gpu'"),
            ({"out": "/proc/none"}, "out '/proc/none': cannot be written"),
        ],
    )
    def test_are_found_before_anything_is_read(self, plugins, monkeypatch, values, expected):
        monkeypatch.setattr(Small, "read", lambda _: pytest.fail("read"))
        with pytest.raises(MetarecError) as raised:
            run(plugins, **values)
        assert expected in str(raised.value) and "\n" not in str(raised.value)

    @pytest.mark.parametrize(
        ("cuda", "gpu", "build", "expected"),
        [
            (None, False, {}, "(2.x) has no CUDA, expected a build that has"),
            ("13.0", False, {}, "torch 2.x finds no GPU, expected one"),
            ("13.0", True, {"native": True, "cuda": False}, "install metarec again with METAREC_CUDA=1"),
        ],
    )
    def test_cuda_that_is_not_there(self, plugins, monkeypatch, tmp_path, cuda, gpu, build, expected):
        monkeypatch.setattr(torch, "__version__", "2.x")
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr("metarec.device.build_info", lambda: build)
        with pytest.raises(ConfigError, match="device 'cuda:0' cannot be used here") as raised:
            run(plugins, device="cuda:0")
        assert expected in str(raised.value) and "\n" not in str(raised.value)
        with pytest.raises(ConfigError, match="device 'cuda:0' cannot be used here"):
            load(tmp_path, device="cuda:0")
        with pytest.raises(ConfigError, match="device 'cuda:0' cannot be used here"):
            Run(device=torch.device("cuda:0"))

    def test_a_scenario_that_the_protocol_does_not_make(self, plugins):
        protocol = {"name": "cold-start", "options": {"new_items": 0.0}}
        with pytest.raises(
            ConfigError, match="protocol 'cold-start' has no scenario 'new-both', expected some of"
        ):
            run(plugins, protocol=protocol, scenarios=["new-both"])


class TestWriting:
    def test_reports_and_artifacts_of_the_first_seed(self, plugins, tmp_path):
        report = run(plugins, out=str(tmp_path / "out"), seeds=[2, 5])
        written = json.loads((tmp_path / "out" / "report.json").read_text())
        assert set(written) == {"rows", "timings", "config", "versions"}
        assert written["rows"] == json.loads(json.dumps(report.rows))
        known = split(small_world().dataset, seed=2)
        expected = create_algorithm("bias").fit(known.train)
        found = load(tmp_path / "out" / "artifacts" / "bias").algorithm
        assert found.mean_ == expected.mean_ and torch.equal(found.bias_["item"], expected.bias_["item"])

    def test_a_second_run_replaces_the_first(self, plugins, tmp_path):
        run(plugins, out=str(tmp_path), algorithms=["bias", "popularity"])
        (tmp_path / "notes.txt").write_text("mine")
        run(plugins, out=str(tmp_path), seeds=[1], algorithms=["bias"])
        assert json.loads((tmp_path / "report.json").read_text())["config"]["seeds"] == [1]
        expected = create_algorithm("bias").fit(split(small_world().dataset, seed=1).train)
        assert load(tmp_path / "artifacts" / "bias").algorithm.mean_ == expected.mean_
        names = sorted(
            str(path.relative_to(tmp_path)) for path in [*tmp_path.iterdir(), *tmp_path.glob("*/*")]
        )
        assert names == ["artifacts", "artifacts/bias", "artifacts/popularity", "notes.txt", "report.json"]

    def test_nothing_is_written_where_no_folder_is_named(self, plugins, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        run(plugins)
        assert list(Path.cwd().iterdir()) == []

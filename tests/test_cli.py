"""The command line as people meet it: what it prints, what it refuses, and what it leaves behind."""

import errno
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import metarec.pluginmanager
from metarec import atomic, cli, describe
from metarec.options import options_of
from metarec.pluginmanager import create_plugin_manager

PLUGIN = Path(__file__).with_name("small_plugin.py")
CONFIG = Path(__file__).with_name("small_run.toml")
PROGRAM = [sys.executable, "-P", "-m", "metarec"]
SMALL = ["--plugin", str(PLUGIN), "run", str(CONFIG)]
FLOORS = ["--algorithms", "bias,global-mean"]


@pytest.fixture
def program(monkeypatch, capsys):
    """Runs the program in this process with plugins of its own; gives exit code, output and errors."""
    monkeypatch.setenv("COLUMNS", "80")
    manager = create_plugin_manager(installed=False)
    monkeypatch.setattr(metarec.pluginmanager, "plugin_manager", lambda: manager)
    monkeypatch.setattr(cli.app, "registered_commands", list(cli.app.registered_commands))

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(list(map(str, arguments)))
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("cli") / "out"
    plugin = Path(__file__).parents[1] / "examples" / "every_ability.py"
    algorithms = "bias,popularity,running-mean"
    arguments = ["--plugin", str(plugin), *SMALL, "--algorithms", algorithms, "--out", str(folder)]
    subprocess.run([*PROGRAM, *arguments], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def known(out):
    """Two items that the artifacts of that run know: the id of the first, the title of the second."""
    items = metarec.load(out / "artifacts" / "bias").items
    return {"id": items.ids[0], "same": items.names[0], "title": items.names[1], "other": items.ids[1]}


def refused(result, *parts):
    """Exit code 2, nothing printed, and one line of error that has these parts."""
    code, printed, errors = result
    assert (code, printed) == (2, "")
    assert errors.startswith("error: ") and errors.count("\n") == 1 and errors.endswith("\n")
    for part in parts:
        assert part in errors
    return errors


class TestHelp:
    def test_nothing_given_prints_help_that_fits_a_narrow_terminal(self, program):
        code, printed, errors = program()
        assert (code, errors) == (0, "")
        for command in ("run", "recommend", "show", "list"):
            assert re.search(rf"^│ {command} ", printed, re.MULTILINE)
        assert max(map(len, printed.splitlines())) <= 80

    @pytest.mark.parametrize("command", ["run", "recommend", "show", "list"])
    def test_every_option_is_explained(self, program, command):
        code, printed, _ = program(command, "--help")
        assert code == 0
        assert max(map(len, printed.splitlines())) <= 80
        for line in printed.splitlines():
            if re.match(r"│ +--\w", line):
                assert re.search(r"--\w+ +\S+ +\S.*│$", line), f"not explained: {line}"

    def test_version(self, program):
        assert program("--version") == (0, f"metarec {metarec.__version__}\n", "")


class TestMisspelt:
    @pytest.mark.parametrize(
        ("arguments", "parts"),
        [
            (["rn"], ["'rn'", "'run'"]),
            (["run", "--algoritms", "bias"], ["--algoritms", "--algorithms"]),
            (["run", "--algorithms", "bais"], ["unknown algorithm 'bais': did you mean 'bias'?"]),
            (["run", "--algorithms", ""], ["algorithms is '', expected a list"]),
            (["run", "--algorithms", ","], ["algorithms is [], expected at least one"]),
            (["run", "--algorithms", "bias,bias"], ["expected 'bias' only once"]),
            (["run", "--dataset", "complete-jorney"], ["did you mean 'complete-journey'?"]),
            (["run", "--protocol", "cold-strat"], ["did you mean 'cold-start'?"]),
            (["run", "--scenarios", "newuser", *FLOORS], ["did you mean 'new-user'?"]),
            (["run", "--metrics", "rsme", *FLOORS], ["did you mean 'rmse'?"]),
            (["run", "--metrics", "ndcg_linear@x", *FLOORS], ["k is 'x', expected a valid integer"]),
            (["run", "--metrics", "rmse@5", *FLOORS], ["takes nothing after its name"]),
            (["run", "--seed", "x"], ["--seed"]),
            (["run", "--seed", "-1"], ["seeds.0 is -1, expected greater than or equal to 0"]),
            (["run", "--seed", str(1 << 63)], ["seeds.0", "expected less than 9223372036854775808"]),
            (["run", "--device", "cdua"], ["did you mean 'cuda'?"]),
            (["run", "--device", "meta"], ["device 'meta' cannot be used here"]),
            (["run", "nowhere.toml"], ["nowhere.toml: no such file"]),
            (["list", "algoritms"], ["did you mean 'algorithms'?"]),
            (["show", "algoritm", "bias"], ["did you mean 'algorithm'?"]),
            (["show", "algorithm", "bais"], ["did you mean 'bias'?"]),
            (["show", "algorithm"], ["NAME"]),
            (["--plugin"], ["--plugin: expected one argument"]),
            (["--plugin", "nowhere.py", "list"], ["'nowhere.py': no such file"]),
            (["recommend", "nowhere"], ["nowhere: no such folder"]),
            (["recommend", "a" * 300], ["File name too long"]),
            (["--plugin", "a" * 300, "list"], ["File name too long"]),
            (["run", "--out", "a" * 300, *FLOORS], ["File name too long"]),
            (["recommend", "nowhere", "--rate", "4"], ["--rate is '4', expected ITEM=VALUE"]),
            (["recommend", "nowhere", "--rate", "A=x"], ["--rate A is 'x', expected a number"]),
            (["recommend", "nowhere", "--rate", "A=1", "--rate", "A=2"], ["--rate A is given twice"]),
            (["recommend", "nowhere", "--attribute", "=4"], ["--attribute is '=4', expected NAME=VALUE"]),
            (["recommend", "nowhere", "--side", "usr"], ["--side", "'usr'", "user", "item"]),
            (["recommend", "nowhere", "-k", "x"], ["-k"]),
            (["recommend", "nowhere", "--device", "cdua"], ["did you mean 'cuda'?"]),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_is_one_line_with_the_nearest_right_name(self, program, arguments, parts):
        refused(program(*arguments), *parts)

    def test_options_of_a_configuration(self, program, tmp_path):
        config = tmp_path / "run.toml"
        config.write_text('algorithms = [{name = "bias", options = {iteration = 3}}]')
        refused(
            program("run", config), "algorithm 'bias': unknown option 'iteration': did you mean 'iterations'?"
        )
        config.write_text("algorithm = 3")
        refused(program("run", config), f"{config}: unknown key 'algorithm': did you mean 'algorithms'?")
        config.write_text("algorithms = ")
        refused(program("run", config), f"{config}: expected TOML: ")


class TestList:
    def test_shows_what_there_is(self, program):
        code, printed, _ = program("list")
        assert code == 0
        for word in (
            "algorithms",
            "bias",
            "complete-journey",
            "cold-start",
            "rmse",
            "categorical",
            "plugins",
        ):
            assert re.search(rf"^{word}\b", printed, re.MULTILINE), word
        assert max(map(len, printed.splitlines())) <= 80

    def test_as_json(self, program):
        _, printed, _ = program("list", "algorithms", "--json")
        (bias,) = [row for row in json.loads(printed) if row["name"] == "bias"]
        assert bias["feedback"] == ["explicit"] and bias["plugin"] == "algorithms.bias"
        assert bias["scenarios"] == ["warm", "new-user", "new-item", "new-both"]
        assert bias["summary"].endswith(".") and "`" not in bias["summary"]
        _, printed, _ = program("list", "--json")
        assert set(json.loads(printed)) >= {
            "algorithms",
            "metrics",
            "datasets",
            "protocols",
            "encoders",
            "plugins",
        }

    def test_names_the_plugin_of_a_file(self, program):
        _, printed, _ = program("--plugin", PLUGIN, "list", "datasets")
        assert re.search(r"small +The small world\. +\S*/small_plugin\.py", printed.replace("\n", " ")) or (
            str(PLUGIN) in printed
        )
        _, printed, _ = program("list", "plugins", "--json")
        assert {"name": str(PLUGIN), "version": None, "left_out": None} in json.loads(printed)


class TestShow:
    def test_options_formula_and_paper(self, program):
        code, printed, _ = program("show", "algorithm", "bias")
        assert code == 0
        assert "iterations: int = 100, 1 to 10,000\n    Most sweeps of EM" in printed
        assert "    precision = 1/τ² + Σ 1/(σ² + v_p)" in printed
        assert "References\nSearle, Casella, McCulloch 1992" in printed
        assert "feedback: explicit\nis floor: yes\n" in printed
        assert "``" not in printed

    def test_without_the_markup_of_docstrings(self, program):
        _, printed, _ = program("show", "algorithm", "bayesian")
        assert not re.search(r"``|:math:|\.\. math::|\*\*\w", printed)

    def test_types_as_people_write_them(self, program):
        _, printed, _ = program("show", "protocol", "cold-start")
        assert "support_sizes: tuple[int | 'all', ...] = (0, 1, 3, 5, 10, 20, 'all')\n" in printed

    def test_a_table_keeps_its_lines(self, program):
        _, printed, _ = program("show", "protocol", "cold-start")
        assert (
            "\nnew-user    a new user          their ratings of known items    the rest of these\n" in printed
        )

    @pytest.mark.parametrize("kind", ["metric", "dataset", "encoder"])
    def test_everything_can_be_shown(self, program, kind):
        _, printed, _ = program("list", f"{kind}s", "--json")
        for row in json.loads(printed):
            code, shown, errors = program("show", kind, row["name"])
            assert (code, errors) == (0, "")
            assert shown.startswith(f"{row['name']}: {kind} of plugin {row['plugin']}\n")

    def test_every_option_has_a_meaning_those_of_groups_too(self, program):
        code, printed, _ = program("show", "algorithm", "melu")
        assert code == 0
        assert (
            "training.epochs: int = 10, 1 to 100,000\n    Passes over the known entities, at most." in printed
        )
        for registry in create_plugin_manager().registries.values():
            for name, thing in registry.items():
                if isinstance(thing, type):
                    meanings = describe.parameters(thing)
                    silent = [option.name for option in options_of(thing) if not meanings.get(option.name)]
                    assert not silent, (
                        f"the docstring of {registry.kind} {name!r} does not say what {silent} are"
                    )


class TestPlugin:
    def test_a_command_of_a_plugin(self, program):
        assert program("--plugin", PLUGIN, "greet", "--name", "Ada") == (0, "hello Ada\n", "")

    def test_a_command_may_not_hide_one_of_ours(self, program, tmp_path):
        file = tmp_path / "thief.py"
        file.write_text(
            "from metarec import hookimpl\ndef run() -> None: pass\n"
            "@hookimpl\ndef register_commands(register): register(run)\n"
        )
        refused(
            program("--plugin", file, "list"), "command 'run' of plugin", "thief.py", "one of metarec's own"
        )

    def test_the_option_may_stand_anywhere(self, program):
        code, printed, _ = program("list", "datasets", "--json", "--plugin", PLUGIN)
        assert code == 0 and "small" in {row["name"] for row in json.loads(printed)}


class TestRun:
    def test_answers_and_writes_reports_and_artifacts(self, program, tmp_path):
        out = tmp_path / "deep" / "out"
        code, printed, errors = program(*SMALL, "--out", out)
        assert (code, errors) == (0, "")
        assert "new-user" in printed and "bias" in printed
        assert printed.endswith(
            f"Reports and artifacts are in {out}. Next: metarec recommend {out}/artifacts/NAME\n"
        )
        assert sorted(path.name for path in (out / "artifacts").iterdir()) == ["bias", "global-mean"]
        assert not list(tmp_path.rglob(".*"))

    def test_options_override_a_configuration_and_keep_its_options(self, program, tmp_path, monkeypatch):
        seen = []
        monkeypatch.setattr(
            "metarec.experiment.Experiment.__init__", lambda self, config, **_: seen.append(config)
        )
        config = tmp_path / "run.toml"
        config.write_text(
            """
            algorithms = [{name = "bias", options = {iterations = 3}}, "random"]
            protocol = {name = "cold-start", options = {new_users = 0.3}}
            dataset = {name = "small", options = {implicit = true}}
            seeds = [4]
            """
        )

        def settled(*arguments):
            with pytest.raises(AttributeError):  # there is nothing to run
                cli.main(["--plugin", str(PLUGIN), "run", *map(str, arguments)])
            metarec.pluginmanager.plugin_manager().unregister(name=str(PLUGIN))
            cli.app.registered_commands.pop()
            return seen[-1].model_dump(exclude_unset=True, mode="json")

        bias = {"name": "bias", "options": {"iterations": 3}}
        file = settled(config)
        assert file["algorithms"] == [bias, {"name": "random"}] and file["seeds"] == [4]
        assert settled(config, "--algorithms", "popularity,bias")["algorithms"] == [
            {"name": "popularity"},
            bias,
        ]
        assert settled(config, "--seed", 1, "--seed", 2)["seeds"] == [1, 2]
        assert settled(config, "--protocol", "cold-start")["protocol"]["options"] == {"new_users": 0.3}
        assert settled(config, "--protocol", "melu")["protocol"] == {"name": "melu"}
        assert settled(config, "--data", "x")["dataset"]["options"] == {"implicit": True, "path": "x"}
        assert settled(config, "--dataset", "table", "--data", "x")["dataset"]["options"] == {"path": "x"}
        assert settled("--data", "x")["dataset"] == {"name": "table", "options": {"path": "x"}}
        assert settled(config, "--scenarios", "warm, new-user")["scenarios"] == ["warm", "new-user"]

    def test_is_quiet_on_standard_error_without_a_terminal(self, out):
        arguments = [*PROGRAM, *SMALL]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        assert "\x1b" not in done.stdout

    def test_an_algorithm_that_cannot_fit_the_feedback(self, program, tmp_path):
        config = tmp_path / "run.toml"
        config.write_text(
            'dataset = {name = "small", options = {implicit = true}}\nalgorithms = ["random", "bias"]'
        )
        found = refused(program("--plugin", PLUGIN, "run", config))
        assert "algorithm 'bias' cannot fit implicit feedback, which data set 'small-world' has" in found


class TestBadOut:
    """A folder that cannot be written is refused before the run where that can be known; nothing is half-written."""

    def test_a_file_in_the_way(self, program, tmp_path):
        (tmp_path / "out").write_text("mine")
        refused(program(*SMALL, "--out", tmp_path / "out"), "cannot be written: Not a directory")
        assert (tmp_path / "out").read_text() == "mine"

    def test_a_read_only_file_system(self, program):
        refused(program(*SMALL, "--out", "/proc/out"), "out '/proc/out': cannot be written: ")

    def test_something_else_where_an_artifact_would_go(self, program, tmp_path):
        (tmp_path / "artifacts" / "bias").mkdir(parents=True)
        (tmp_path / "artifacts" / "bias" / "thesis.txt").write_text("mine")
        refused(program(*SMALL, "--out", tmp_path), "holds something that is no artifact")
        assert [path.name for path in tmp_path.rglob("*.*")] == ["thesis.txt"]

    @pytest.mark.parametrize("before", [False, True], ids=["new", "over an earlier one"])
    def test_a_disk_that_is_full_half_way(self, program, tmp_path, monkeypatch, before):
        out = tmp_path / "out"
        if before:
            program(*SMALL, "--out", out)
            metarec.pluginmanager.plugin_manager().unregister(name=str(PLUGIN))
            cli.app.registered_commands.pop()
        kept = contents(tmp_path)
        written = []

        def write_bytes(path, content):
            if len(written) == 4:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written.append(path)
            with open(path, "wb") as file:
                file.write(content[: len(content) // 2] if len(written) == 4 else content)

        monkeypatch.setattr(Path, "write_bytes", write_bytes)
        code, printed, errors = program(*SMALL, "--out", out)
        assert code == 2
        assert "new-user" in printed  # the answer is not lost
        assert errors.startswith(f"error: {out}") and errors.endswith(
            "cannot be written: No space left on device\n"
        )
        assert contents(tmp_path) == kept

    def test_an_interrupt_while_writing(self, program, tmp_path, monkeypatch):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(atomic, "_flush", interrupt)
        code, _, errors = program(*SMALL, "--out", tmp_path / "out")
        assert (code, errors) == (130, "")
        assert contents(tmp_path) == {}


class TestVerify:
    def test_holds_algorithms_to_known_answers(self, program):
        code, output, errors = program("verify", "anil", "bias")
        assert (code, errors) == (0, "")
        assert output.startswith("6 of 6 checks passed.")
        assert "meta-gradient by autograd" in output
        assert "No answer is known beforehand of bias." in output

    def test_json_and_the_exit_code_tell_of_a_wrong_one(self, program, tmp_path):
        plugin = tmp_path / "wrong.py"
        plugin.write_text(
            "import torch\n"
            "from metarec import hookimpl\n"
            "from metarec.plugins.algorithms.anil import ANIL\n"
            "class Wrong(ANIL):\n"
            "    name = 'wrong'\n"
            "    def weights(self, lists):\n"
            "        return torch.ones_like(super().weights(lists))\n"
            "@hookimpl\n"
            "def register_algorithms(register):\n"
            "    register(Wrong)\n"
        )
        code, output, errors = program("--plugin", plugin, "verify", "wrong", "--json")
        rows = json.loads(output)
        assert (code, errors) == (1, "")
        assert {row["algorithm"] for row in rows} == {"wrong"}
        assert [row["passed"] for row in rows] == [row["error"] <= row["tolerance"] for row in rows]
        assert not all(row["passed"] for row in rows)

    def test_refuses_what_it_cannot_do(self, program):
        refused(program("verify"), "verify needs the names of algorithms, or --all")
        refused(program("verify", "bias", "--all"), "verify needs the names of algorithms, or --all")
        refused(program("verify", "mamll"), "did you mean 'maml'?")


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


class TestRecommend:
    def test_items_with_scores_deviations_and_ids(self, program, out):
        code, printed, errors = program("recommend", out / "artifacts" / "bias", "-k", 3)
        assert (code, errors) == (0, "")
        head, *rows = printed.splitlines()
        assert head.split() == ["id", "item", "score", "±", "of", "it", "unknown"]
        assert len(rows) == 3 and all(
            re.match(r"i\d+ +Item \d+ +\d\.\d\d +\d\.\d\d +\d\.\d\d", row) for row in rows
        )

    def test_as_json_in_order_without_what_was_rated(self, program, out, known):
        ratings = ("--rate", f"{known['id']}=5", "--rate", f"{known['title']}=1")
        arguments = (*ratings, "--attribute", "age=30", "-k", 20, "--json")
        code, printed, errors = program("recommend", out / "artifacts" / "bias", *arguments)
        assert (code, errors) == (0, "")
        rows = json.loads(printed)
        assert list(rows[0]) == ["id", "title", "score", "deviation", "unknown", "because"]
        assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
        assert not {known["id"], known["other"]} & {row["id"] for row in rows}

    def test_without_a_deviation_there_is_no_column_for_it(self, program, out):
        _, printed, _ = program("recommend", out / "artifacts" / "popularity", "-k", 1)
        assert printed.splitlines()[0].split() == ["id", "item", "score", "±"]

    def test_the_ratings_that_caused_it_stand_below_it(self, program, out, known):
        plugin = Path(__file__).parents[1] / "examples" / "every_ability.py"
        ratings = ("--rate", f"{known['id']}=5", "--rate", f"{known['title']}=1", "-k", 1)
        artifact = out / "artifacts" / "running-mean"
        code, printed, errors = program("--plugin", plugin, "recommend", artifact, *ratings)
        assert (code, errors) == (0, "")
        lines = [line.strip() for line in printed.splitlines()[2:]]
        reasons = {line.partition(" because of ")[2]: float(line.split()[0]) for line in lines}
        assert reasons[known["same"]] > 0 > reasons[known["title"]] and len(lines) == 2

    def test_the_plugin_of_an_artifact_must_be_named(self, program, out):
        found = refused(program("recommend", out / "artifacts" / "running-mean"))
        assert (
            "every_ability.py' for algorithm 'running-mean': it is not loaded" in found
            and "--plugin" in found
        )

    def test_users_for_a_new_item(self, program, out):
        code, printed, _ = program(
            "recommend", out / "artifacts" / "bias", "--side", "item", "--rate", "1002=4", "-k", 2
        )
        assert code == 0
        assert printed.splitlines()[0].split()[0] == "user"

    def test_a_value_that_nobody_has_is_warned_of(self, program, out):
        code, _, errors = program("recommend", out / "artifacts" / "bias", "--attribute", "group=g11")
        assert code == 0
        assert errors == "warning: user attribute 'group': unknown value 'g11': did you mean 'g1'?\n"

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (["--rate", "itme=5"], "unknown item 'itme': did you mean 'Item "),
            (["--rate", "zebra=5"], "known has a name or an id like it"),
            (["--rate", "{id}=6"], "rating of '{id}' is 6, expected 1 to 5"),
            (["--rate", "{id}=nan"], "rating of '{id}' is nan, expected 1 to 5"),
            (["--rate", "{id}=inf"], "rating of '{id}' is inf, expected 1 to 5"),
            (
                ["--rate", "{id}=4", "--rate", "{same}=5"],
                "'{same}' is rated twice, by its id and by its name",
            ),
            (["--attribute", "gruop=g1"], "unknown user attribute 'gruop': did you mean 'group'?"),
            (["--attribute", "age=old"], "attribute 'age': found 'old', expected a finite number"),
            (["-k", "0"], "k is 0, expected 1 to "),
            (["-k", "1000"], "k is 1000, expected 1 to "),
        ],
    )
    def test_what_does_not_fit_is_one_line(self, program, out, known, arguments, expected):
        arguments = [argument.format(**known) for argument in arguments]
        refused(program("recommend", out / "artifacts" / "bias", *arguments), expected.format(**known))

    def test_a_folder_above_an_artifact_is_none(self, program, out):
        refused(program("recommend", out), "is no artifact of metarec: it has no manifest.json")


class TestTerminal:
    def test_a_bar_after_two_seconds_and_control_c(self, tmp_path):
        plugin = tmp_path / "slow.py"
        plugin.write_text(
            PLUGIN.read_text().replace(
                "return small_world", "import time; time.sleep(60); return small_world"
            )
        )
        arguments = ["--plugin", str(plugin), *SMALL[2:], "--out", str(tmp_path / "out")]
        code, shown = on_a_terminal(arguments, until="read small", limit=60)
        assert code == 130
        assert "Traceback" not in shown
        assert [path.name for path in tmp_path.iterdir()] in (["slow.py"], ["__pycache__", "slow.py"])


def on_a_terminal(arguments, *, until, limit):
    """Run the program on a terminal, press Control-C once it shows `until`; its exit code and all it showed."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm", COLUMNS="80")
        os.execv(sys.executable, [*PROGRAM, *arguments])
    shown, pressed, deadline = b"", False, time.monotonic() + limit
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                shown += os.read(terminal, 1 << 16)
            except OSError:  # Linux: the other end is closed
                break
        if not pressed and until in shown.decode(errors="ignore"):
            os.write(terminal, b"\x03")
            pressed = True
    else:
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown.decode(errors="replace")

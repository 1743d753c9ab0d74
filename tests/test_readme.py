"""All that the README shows is run, in order, and prints what it says."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from metarec.config import RunConfig, read_toml
from metarec.pluginmanager import create_plugin_manager, plugin_manager
from metarec.tasks import SCENARIOS

ROOT = Path(__file__).parents[1]
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
FENCE = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file it is kept in (the word after the language), and its text."""

    language: str
    file: str | None
    text: str
    line: int


def blocks() -> list[Block]:
    text = (ROOT / "README.md").read_text()
    return [Block(*match.groups(), text.count("\n", 0, match.start()) + 1) for match in FENCE.finditer(text)]


def shown(language: str) -> list[ParameterSet]:
    return [pytest.param(block, id=f"line {block.line}") for block in blocks() if block.language == language]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the README names."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "examples").symlink_to(ROOT / "examples")
    for block in blocks():
        if block.file is not None and not block.file.startswith("examples/"):
            (folder / block.file).write_text(block.text)
    return folder


def assert_shows(expected: str, printed: str) -> None:
    """Every expected line is printed, in order, its numbers as good as the same: other processors round differently.

    A line "…" stands for any number of lines.
    """
    lines = iter(printed.splitlines())
    for line in filter(str.strip, expected.splitlines()):
        if line.strip() != "…":
            assert any(alike(line, other) for other in lines), f"not printed: {line!r}\nall of it:\n{printed}"


def alike(line: str, other: str) -> bool:
    if NUMBER.sub("#", line).split() != NUMBER.sub("#", other).split():
        return False
    pairs = zip(NUMBER.findall(line), NUMBER.findall(other), strict=True)
    return all(float(b) == pytest.approx(float(a), rel=0.02, abs=_slack(a)) for a, b in pairs)


def _slack(number: str) -> float:
    """Five units of the last decimal; one where there is none."""
    return 5 * 10.0 ** -len(number.partition(".")[2]) if "." in number else 1


def test_alike_compares_words_and_numbers():
    assert alike("bayesian  0.700 ± 0.01", "bayesian 0.701 ± 0.02")
    assert not alike("bayesian 0.70", "bayesian 0.80")
    assert not alike("bayesian 0.70", "bias 0.70")
    with pytest.raises(AssertionError, match="not printed"):
        assert_shows("b\na", "a\nb")


@pytest.mark.parametrize("block", shown("console"))
def test_command(block: Block, folder: Path):
    command, expected = block.text.removeprefix("$ ").split("\n", 1)
    arguments = shlex.split(command)
    assert arguments[0] == "metarec"
    environment = {**os.environ, "COLUMNS": "120"}
    program = [Path(sys.executable).with_name("metarec"), *arguments[1:]]
    done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_shows(expected, done.stdout)


def pairs() -> list[ParameterSet]:
    """Each Python block with the text block that follows it."""
    found = [block for block in blocks() if block.language in ("python", "text")]
    return [
        pytest.param(code, output, id=f"line {code.line}")
        for code, output in pairwise(found)
        if (code.language, output.language) == ("python", "text")
    ]


@pytest.mark.parametrize(("code", "output"), pairs())
def test_python(code: Block, output: Block, folder: Path):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.chdir(folder):
        exec(compile(code.text, f"README.md, line {code.line}", "exec"), {"__name__": "__main__"})
    assert_shows(output.text, printed.getvalue())


@pytest.mark.parametrize("block", shown("toml"))
def test_configuration(block: Block, folder: Path):
    config = RunConfig.of(read_toml(folder / block.file), source=block.file)
    plugins = plugin_manager()
    plugins.datasets.create(config.dataset.name, **config.dataset.options)
    for choice in config.algorithms:
        plugins.algorithms.create(choice.name, **choice.options)


@pytest.mark.parametrize("block", [block for block in blocks() if (block.file or "").startswith("examples/")])
def test_a_file_is_shown_as_it_is(block: Block):
    assert (ROOT / block.file).read_text() == block.text


def test_the_catalogue_names_every_algorithm():
    text = (ROOT / "README.md").read_text().split("## The catalogue")[1].split("metarec show")[0]
    assert sorted(re.findall(r"`([a-z-]+)`", text)) == sorted(
        create_plugin_manager(installed=False).algorithms
    )


def test_the_table_of_ops_is_what_was_measured():
    measured = json.loads((ROOT / "benchmarks/results/ops.json").read_text())
    table = (ROOT / "README.md").read_text().split("`python -m benchmarks.ops`")[1].split("\n\n")[1]
    op = ours = share = ""
    for line in table.splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        op, ours, share = cells[0].strip("`") or op, cells[2] or ours, cells[3] or share
        assert any(
            rounds_to(ours, row["ours_ms"] * (1000 if ours.endswith("µs") else 1))
            and rounds_to(share, 100 * row["share"])
            and (not cells[5] or rounds_to(cells[5], row["ratio"]))
            for row in measured
            if row["op"] == op
        ), line


def test_the_table_of_the_catalogue_is_what_was_measured():
    """In the order of the table's columns: MetaHIN's split, then MeLU's protocol; new user, new item, both."""
    measured = json.loads((ROOT / "benchmarks/results/quality.json").read_text())["catalogue"]
    gains = {
        (one["protocol"], one["algorithm"], row["scenario"]): row
        for one in measured
        for row in one["rows"]
        if row["metric"] == "rmse"
    }
    text = (ROOT / "README.md").read_text()
    table = text.split("`python -m benchmarks.quality --only metahin,melu`")[1].split("\n\n")[1]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    columns = [(protocol, name) for protocol in ("metahin", "melu") for name in SCENARIOS[1:]]
    assert {name for protocol, name, _ in gains if protocol in ("metahin", "melu")} == {
        line[0].strip("`") for line in lines
    }
    for algorithm, *shown in lines:
        for (protocol, scenario), cell in zip(columns, shown, strict=True):
            row = gains.get((protocol, algorithm.strip("`"), scenario))
            assert cell == ("–" if row is None else gain_shown(row)), (algorithm, protocol, scenario)


def gain_shown(row: dict[str, float]) -> str:
    number = f"{row['gain']:.3f}".replace("0.", ".").replace("-", "−")
    return f"**{number}**" if row["gain_low"] > 0 else f"{number} ▼" if row["gain_high"] < 0 else number


def rounds_to(shown: str, value: float) -> bool:
    number = shown.split()[0]
    return abs(float(number) - value) <= 0.5001 * 10.0 ** -len(number.partition(".")[2])


def test_every_block_is_held_by_a_test():
    found = blocks()
    assert {block.language for block in found} == {"sh", "console", "python", "text", "toml", "cpp", "cmake"}
    assert all(block.file for block in found if block.language in ("toml", "cpp", "cmake"))
    run = {pair.values[0] for pair in pairs()} | {block for block in found if block.file}
    assert all(block in run for block in found if block.language == "python")


def test_continuous_integration_runs_the_command_that_is_shown():
    commands = [block.text.strip() for block in blocks() if block.language == "sh"]
    (tests,) = [command for command in commands if ".venv/bin/pytest" in command]
    assert "grep -m 1 '^python3 -m venv .*pytest' README.md" in (ROOT / ".ci/run").read_text()
    assert len(commands) == 2 and tests.startswith("python3 -m venv ")

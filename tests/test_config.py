"""A configuration is what its TOML says, and what is wrong with it is said in one line."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metarec.config import Choice, RunConfig, read_toml
from metarec.errors import ConfigError


def write(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def problem(values):
    with pytest.raises(ConfigError) as raised:
        RunConfig.of(values, source="run.toml")
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_names_and_tables_are_choices(tmp_path):
    path = write(
        tmp_path,
        """
        seeds = [0, 1]
        algorithms = ["bias", {name = "bayesian", options = {rank = 32}}]
        [dataset]
        name = "table"
        [dataset.options]
        path = "ratings.csv"
        """,
    )
    config = RunConfig.of(read_toml(path))
    assert config.seeds == (0, 1)
    assert config.algorithms == (Choice(name="bias"), Choice(name="bayesian", options={"rank": 32}))
    assert config.dataset == Choice(name="table", options={"path": "ratings.csv"})
    assert config.protocol == Choice(name="cold-start")
    assert config.algorithms[1].options["rank"] == 32


def test_nothing_given_is_the_main_job():
    config = RunConfig()
    assert (config.dataset.name, config.protocol.name, config.seeds, config.device) == (
        "complete-journey",
        "cold-start",
        (0,),
        "cpu",
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"algoritms": ["bias"]}, "run.toml: unknown key 'algoritms': did you mean 'algorithms'?"),
        ({"dataset": {"nam": "table"}}, "run.toml: dataset: unknown key 'nam': did you mean 'name'?"),
        ({"dataset": {"options": {}}}, "run.toml: dataset.name is missing"),
        ({"seeds": []}, "run.toml: seeds is [], expected at least one"),
        ({"seeds": ["one"]}, "run.toml: seeds.0 is 'one', expected a valid integer"),
        ({"seeds": 3}, "run.toml: seeds is 3, expected a list"),
        ({"algorithms": ["a", "a"]}, "run.toml: algorithms is ['a', 'a'], expected 'a' only once"),
        ({"device": 1}, "run.toml: device is 1, expected a valid string"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(values, expected):
    assert problem(values).startswith(expected)


def test_bad_toml_is_named_with_file_and_line(tmp_path):
    path = write(tmp_path, 'seeds = [0]\nalgorithms = ["bias"\ndevice = "cpu"\n')
    with pytest.raises(ConfigError, match=r"run\.toml: expected TOML: .*line 3"):
        read_toml(path)


def test_missing_and_undecodable_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: no such file or directory"):
        read_toml(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes('device = "é"'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.toml: expected TOML: .*utf-8"):
        read_toml(tmp_path / "latin.toml")


text = st.text(st.characters(codec="utf-8"))
plain = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), text)
values = st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(text, inner))


@given(st.dictionaries(text, values), st.lists(st.integers(0, 2**63 - 1), min_size=1, unique=True))
def test_toml_gives_back_the_same_configuration(options, seeds):
    config = RunConfig(dataset=Choice(name="table", options=options), seeds=tuple(seeds))
    assert RunConfig.of(tomllib.loads(config.to_toml())) == config

"""Options of plugins are what stands in ``__init__``: shown as such, validated, and wrong ones said in one line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import pytest

from metarec import Range
from metarec.errors import ConfigError
from metarec.options import Option, build, options_of
from metarec.pluginmanager import plugin_manager


class Thing:
    def __init__(
        self,
        *,
        path: Path,
        rank: Annotated[int, Range(1, 64)] = 16,
        rate: Annotated[float, Range(1e-4, 0.1, log=True)] = 0.01,
        limit: Annotated[int, Range(0, 9)] | None = None,
        shares: tuple[Annotated[float, Range(0, 1)], ...] = (),
        mode: Literal["fast", "exact"] = "exact",
        sizes: tuple[int | Literal["all"], ...] = (),
    ) -> None:
        self.path, self.rank, self.rate, self.limit = path, rank, rate, limit
        self.shares, self.mode, self.sizes = shares, mode, sizes


class Plain:
    pass


@dataclass(frozen=True)
class Schedule:
    epochs: Annotated[int, Range(1, 9)] = 3
    rate: float = 0.5


class Learner:
    def __init__(self, *, schedule: Schedule = Schedule(epochs=7)) -> None:
        self.schedule = schedule


def test_a_dataclass_is_a_group_of_options():
    shown = [(option.name, option.type, option.default) for option in options_of(Learner)]
    assert shown == [("schedule.epochs", "int", 7), ("schedule.rate", "float", 0.5)]
    assert options_of(Learner)[0].range == Range(1, 9)
    given = {"schedule": {"rate": 2}}
    assert build(Learner, given, what="learner").schedule == Schedule(7, 2.0), (
        "the class's own default for the rest"
    )
    assert build(Learner, {"schedule": Schedule(1)}, what="learner").schedule == Schedule(1)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"rtae": 1}, "learner: schedule: unknown option 'rtae': did you mean 'rate'?"),
        ({"epochs": 0}, "learner: schedule.epochs is 0, expected greater than or equal to 1"),
        ({"rate": "fast"}, "learner: schedule.rate is 'fast', expected a valid number"),
        ({"epochs": True}, "learner: schedule.epochs is True, expected a valid integer"),
    ],
)
def test_wrong_options_of_a_group_are_named(given, expected):
    with pytest.raises(ConfigError) as caught:
        build(Learner, {"schedule": given}, what="learner")
    assert str(caught.value) == expected


class Ability(Protocol):
    def able(self) -> None: ...


class Patient(Learner):
    """Adds an option, and passes the base's on."""

    def __init__(self, *, momentum: Annotated[float, Range(0, 1)] = 0.9, **options: Any) -> None:
        super().__init__(**options)
        self.momentum = momentum


class Hasty(Patient):
    """Has another default and another range for one of its base's options."""

    def __init__(
        self,
        *,
        haste: int,
        momentum: Annotated[float, Range(0, 0.5)] = 0.1,
        schedule: Schedule = Schedule(1),
        **options: Any,
    ) -> None:
        super().__init__(momentum=momentum, schedule=schedule, **options)
        self.haste = haste


class Heir(Ability, Hasty):
    """Has no ``__init__`` of its own."""

    def able(self) -> None: ...


def test_options_that_are_passed_on_to_a_base_are_the_class_s_too():
    shown = [(option.name, option.default) for option in options_of(Patient)]
    assert shown == [("momentum", 0.9), ("schedule.epochs", 7), ("schedule.rate", 0.5)]
    made = build(Patient, {"schedule": {"rate": 2}}, what="patient")
    assert (made.momentum, made.schedule) == (0.9, Schedule(7, 2.0))
    with pytest.raises(ConfigError) as caught:
        build(Patient, {"shcedule": {}}, what="patient")
    assert str(caught.value) == "patient: unknown option 'shcedule': did you mean 'schedule'?"


@pytest.mark.parametrize("cls", [Hasty, Heir])
def test_a_default_and_a_type_are_those_of_the_class_that_names_them_first(cls):
    shown = [(option.name, option.default) for option in options_of(cls)]
    assert shown[1:] == [("momentum", 0.1), ("schedule.epochs", 1), ("schedule.rate", 0.5)]
    made = build(cls, {"haste": 3, "schedule": {"rate": 2}}, what="hasty")
    assert (made.haste, made.momentum, made.schedule) == (3, 0.1, Schedule(1, 2.0))
    with pytest.raises(ConfigError, match=r"^hasty: momentum is 0\.9, expected less than or equal to 0\.5$"):
        build(cls, {"haste": 3, "momentum": 0.9}, what="hasty")
    with pytest.raises(ConfigError, match=r"^hasty: haste is missing$"):
        build(cls, {}, what="hasty")


def test_a_base_that_does_not_pass_options_on_ends_them():
    class Closed(Thing):
        def __init__(self, *, rank: int = 3) -> None:
            super().__init__(path=Path("here"), rank=rank)

    class Open(Closed):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)

    assert [option.name for option in options_of(Open)] == ["rank"]


def test_options_are_shown_in_order_with_type_default_and_range():
    path, rank, rate, limit, shares, *_ = options_of(Thing)
    assert (path.name, path.type) == ("path", "pathlib.Path")
    assert rank == Option("rank", "int", 16, Range(1, 64))
    assert rate == Option("rate", "float", 0.01, Range(1e-4, 0.1, log=True))
    assert (limit.default, limit.range) == (None, Range(0, 9)) and "Annotated" not in limit.type
    assert (shares.type, shares.range) == ("tuple[float, ...]", Range(0, 1))
    assert options_of(Plain) == []


def test_given_options_are_converted_to_their_types_and_the_rest_keep_their_defaults():
    made = build(Thing, {"path": "a/b", "rank": 64, "limit": 0, "shares": [0, 1]}, what="thing")
    assert made.path == Path("a/b")
    assert (made.rank, made.rate, made.limit, made.mode) == (64, 0.01, 0, "exact")
    assert made.shares == (0.0, 1.0) and isinstance(made.shares[0], float)
    assert isinstance(build(Plain, {}, what="thing"), Plain)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"rnak": 3}, "unknown option 'rnak': did you mean 'rank'?"),
        ({}, "path is missing"),
        ({"path": 3}, "path is 3, expected a path"),
        ({"rank": 0}, "rank is 0, expected greater than or equal to 1"),
        ({"rank": 65}, "rank is 65, expected less than or equal to 64"),
        ({"rank": 2.5}, "rank is 2.5, expected a valid integer, got a number with a fractional part"),
        ({"rank": "two"}, "rank is 'two', expected a valid integer"),
        ({"rate": float("nan")}, "rate is nan, expected less than or equal to 0.1"),
        ({"limit": 10}, "limit is 10, expected less than or equal to 9"),
        ({"shares": [0.5, 2.0]}, "shares.1 is 2.0, expected less than or equal to 1"),
        ({"shares": 0.5}, "shares is 0.5, expected a list"),
        ({"sizes": [3, "al"]}, "sizes.1 is 'al', expected a valid integer or 'all'"),
        (
            {"shares": ["x", "x"]},
            "shares.0 is 'x', expected a valid number",
        ),
        ({"rank": True}, "rank is True, expected a valid integer"),
        ({"limit": True}, "limit is True, expected a valid integer"),
        ({"shares": [0.5, True]}, "shares.1 is True, expected a valid number"),
        ({"sizes": [3, True]}, "sizes.1 is True, expected a valid integer"),
        ({"mode": "slow"}, "mode is 'slow', expected 'fast' or 'exact'"),
        ({"mode": "two\nlines"}, r"mode is 'two\nlines', expected 'fast' or 'exact'"),
    ],
)
def test_a_wrong_option_is_said_in_one_line(given, expected):
    given = {"path": "here", **given} if given else given
    with pytest.raises(ConfigError) as raised:
        build(Thing, given, what="thing 'a'")
    assert str(raised.value) == f"thing 'a': {expected}"


def test_an_option_must_be_keyword_only_and_typed():
    class Positional:
        def __init__(self, rank: int = 1) -> None: ...

    class Untyped:
        def __init__(self, *, rank=1) -> None: ...

    with pytest.raises(ConfigError, match=r"Positional\.__init__: rank must be keyword-only$"):
        build(Positional, {}, what="thing")
    with pytest.raises(ConfigError, match=r"Untyped\.__init__: rank must have a type$"):
        options_of(Untyped)


REGISTERED = [(kind, name) for kind, things in plugin_manager().registries.items() for name in things]


@pytest.mark.parametrize(("kind", "name"), REGISTERED, ids=lambda part: part)
def test_defaults_of_every_built_in_plugin_pass_their_own_checks(kind, name):
    thing = plugin_manager().registries[kind][name]
    options = options_of(thing)
    given = {}
    for option in options:
        group, _, field = option.name.rpartition(".")
        (given.setdefault(group, {}) if group else given)[field] = option.default
    required = {"path": "somewhere"} if "path" in given else {}
    made = plugin_manager().registries[kind].create(name, **(given | required))
    assert isinstance(made, thing)

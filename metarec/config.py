"""A run's configuration: a TOML file, command-line options, or both, as validated objects.

    seeds = [0, 1, 2]
    algorithms = ["bias", {name = "bayesian", options = {rank = 32}}]

    [dataset]
    name = "movielens"
    options = {path = "ml-1m"}

Which names and options exist is the plugins' matter: they are checked when the run starts.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from metarec.errors import ConfigError, unknown_name
from metarec.options import first_problem


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Choice(_Strict):
    """A plugin's thing and the options to make it with; a plain string is a name without options.

    Parameters
    ----------
    name : str
        As registered.
    options : dict
        By name; the rest keep their defaults.
    """

    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given


class RunConfig(_Strict):
    """What one run does.

    Parameters
    ----------
    dataset : Choice, default "complete-journey"
        What to read.
    protocol : Choice, default "cold-start"
        How to split it.
    algorithms : tuple of Choice, optional
        What to compare; default: all floors and ``bayesian``.
    scenarios : tuple of str, optional
        Which of the protocol's scenarios; default: all.
    metrics : tuple of str, optional
        What to measure, such as ``"rmse"`` or ``"ndcg_linear@5"``; default: all, at their default positions.
    seeds : tuple of int, default (0,)
        One split and one fit per seed; from 0 to 2⁶³ − 1.
    device : str, default "cpu"
        Where to compute, as torch names it.
    out : Path, optional
        Folder for the reports and the fitted artifacts.
    reporters : tuple of Choice, optional
        What to write there; default: all.
    """

    dataset: Choice = Choice(name="complete-journey")
    protocol: Choice = Choice(name="cold-start")
    algorithms: tuple[Choice, ...] | None = Field(default=None, min_length=1)
    scenarios: tuple[str, ...] | None = Field(default=None, min_length=1)
    metrics: tuple[str, ...] | None = Field(default=None, min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0, lt=1 << 63)], ...] = Field(default=(0,), min_length=1)
    device: str = "cpu"
    out: Path | None = None
    reporters: tuple[Choice, ...] | None = Field(default=None, min_length=1)

    @field_validator("algorithms", "metrics", "reporters", "scenarios", "seeds")
    @classmethod
    def _no_repeats(cls, values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        names = [value.name if isinstance(value, Choice) else value for value in values or ()]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name!r} only once")
        return values

    @classmethod
    def of(cls, values: Mapping[str, Any], *, source: str = "configuration") -> Self:
        """The configuration that plain values describe.

        Raises
        ------
        ConfigError
            One line: where in `source`, what was found, what was expected, the nearest right key.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{source}: {_problem(error)}") from None

    def to_toml(self) -> str:
        """The TOML that `read_toml` reads back as the same values."""
        values = self.model_dump(exclude_none=True)
        return "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())


def read_toml(path: Path) -> dict[str, Any]:
    """The plain values in a TOML file, for `RunConfig.of`.

    Raises
    ------
    ConfigError
        The file cannot be read or is no TOML (with its line).
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected TOML: {error}") from None


def _problem(error: ValidationError) -> str:
    unknown = [problem["loc"] for problem in error.errors() if problem["type"] == "extra_forbidden"]
    if not unknown:
        return first_problem(error)
    *where, found = map(str, unknown[0])
    known = Choice.model_fields if where else RunConfig.model_fields
    return ": ".join([*where, unknown_name("key", found, known)])


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(part)}" for key, part in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, (str, Path)):
        return json.dumps(str(value), ensure_ascii=False).replace(
            "\x7f", "\\u007f"
        )  # which JSON takes and TOML does not
    return json.dumps(value) if isinstance(value, bool) else repr(value)

"""Options of plugins: whatever stands, typed and keyword-only, in a class's ``__init__``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from metarec.errors import ConfigError, unknown_name

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """Bounds of a numeric option, both included: ``learning_rate: Annotated[float, Range(1e-4, 0.1, log=True)]``.

    Parameters
    ----------
    low, high : float
        Least and greatest value.
    log : bool, default False
        Whether tuning should search it on a logarithmic scale.
    """

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Option:
    """One option of a plugin, as shown to people."""

    name: str
    type: str
    default: Any
    range: Range | None


def options_of(cls: type) -> list[Option]:
    """The options of a plugin class, in the order of its ``__init__``."""
    hints = _hints(cls)
    return [
        Option(name, _type_name(hints[name]), parameter.default, _range(hints[name]))
        for name, parameter in _parameters(cls).items()
    ]


def build(cls: type[T], given: Mapping[str, Any], *, what: str) -> T:
    """An instance of a plugin class with the options `given`, validated and converted to their types.

    Parameters
    ----------
    cls : type
        The plugin class.
    given : mapping
        Options by name; the rest keep their defaults.
    what : str
        What error messages call it, such as ``"algorithm 'bayesian'"``.

    Raises
    ------
    ConfigError
        An unknown option (with the nearest right one), a missing one, a wrong type or a value out of range.
    """
    known = _parameters(cls)
    for name in given:
        if name not in known:
            raise ConfigError(f"{what}: {unknown_name('option', name, known)}")
    try:
        valid = _model(cls)(**given)
    except ValidationError as error:
        raise ConfigError(f"{what}: {first_problem(error)}") from None
    return cls(**{name: getattr(valid, name) for name in valid.model_fields_set})


_EXPECTED = {"too_short": "at least one", "tuple_type": "a list"}


def first_problem(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, in one line: where, what was found, what was expected."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    expected = _EXPECTED.get(problem["type"], message)
    if problem["type"] == "missing":
        return f"{where} is missing"
    return f"{where} is {problem['input']!r}, expected {expected}"


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    if cls.__init__ is object.__init__:  # type: ignore[misc]
        return {}
    parameters = dict(inspect.signature(cls).parameters)
    for name, parameter in parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            raise ConfigError(f"{cls.__qualname__}.__init__: {name} must be keyword-only")
    return parameters


def _hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls.__init__, include_extras=True) if _parameters(cls) else {}
    for name in _parameters(cls):
        if name not in hints:
            raise ConfigError(f"{cls.__qualname__}.__init__: {name} must have a type")
    return hints


def _range(hint: Any) -> Range | None:
    return next((extra for extra in get_args(hint)[1:] if isinstance(extra, Range)), None)


def _type_name(hint: Any) -> str:
    plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return inspect.formatannotation(plain)


def _model(cls: type) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    hints = _hints(cls)
    for name, parameter in _parameters(cls).items():
        required = parameter.default is inspect.Parameter.empty
        bounds = _range(hints[name])
        limits = {} if bounds is None else {"ge": bounds.low, "le": bounds.high}
        fields[name] = (hints[name], Field(... if required else parameter.default, **limits))
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())
    return create_model(cls.__name__, __config__=config, **fields)

"""Options of plugins: whatever stands, typed and keyword-only, in a class's ``__init__``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError, create_model
from pydantic_core import CoreSchema, ErrorDetails

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

    def __get_pydantic_core_schema__(self, annotated: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Have pydantic check the bounds wherever the annotation stands, inside a union or a list as well."""
        return handler.generate_schema(Annotated[annotated, Field(ge=self.low, le=self.high)])


@dataclass(frozen=True)
class Option:
    """One option of a plugin, as shown to people."""

    name: str
    type: str
    default: Any
    range: Range | None


def options_of(cls: type) -> list[Option]:
    """The options of a plugin class, in the order of its ``__init__``.

    An option whose type is a dataclass is a group: its fields are shown as ``group.field``.
    """
    return [option for name in _parameters(cls) for option in _shown(cls, name)]


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
    _check_names(cls, given, what)
    try:
        valid = _model(cls)(**_completed(cls, given))
    except ValidationError as error:
        raise ConfigError(f"{what}: {first_problem(error)}") from None
    return cls(**{name: getattr(valid, name) for name in valid.model_fields_set})


_EXPECTED = {"too_short": "at least one", "tuple_type": "a list", "path_type": "a path"}


def first_problem(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, in one line: where, what was found, what was expected."""
    problems = error.errors(include_url=False)
    problem = problems[0]
    *place, last = problem["loc"]
    where, expected = ".".join(map(str, problem["loc"])), _expected(problem)
    if problem["type"] == "missing":
        return f"{where} is missing"
    alike = [p for p in problems if [*p["loc"][:-1]] == place and p["input"] is problem["input"]]
    if place and isinstance(last, str) and len(alike) > 1:  # each type of a union has a problem of its own
        where = ".".join(map(str, place))
        expected = " or ".join(map(_expected, alike))
    return f"{where} is {problem['input']!r}, expected {expected}"


def _expected(problem: ErrorDetails) -> str:
    message = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return _EXPECTED.get(problem["type"], message.partition(", unable to parse")[0])


def _check_names(cls: type, given: Mapping[str, Any], what: str) -> None:
    known = _parameters(cls)
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"{what}: {unknown_name('option', name, known)}")
        if is_dataclass(group := _hints(cls)[name]) and isinstance(value, Mapping):
            _check_names(cast(type, group), value, f"{what}: {name}")


def _completed(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, the part of a group that it names completed with this class's default for the rest."""
    known = _parameters(cls)
    return {
        name: {**vars(known[name].default), **value}
        if is_dataclass(known[name].default) and isinstance(value, Mapping)
        else value
        for name, value in given.items()
    }


def _shown(cls: type, name: str) -> list[Option]:
    hint, default = _hints(cls)[name], _parameters(cls)[name].default
    if not is_dataclass(hint):
        return [Option(name, _type_name(hint), default, _range(hint))]
    return [
        Option(f"{name}.{one.name}", one.type, getattr(default, one.name, one.default), one.range)
        for one in options_of(cast(type, hint))
    ]


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    if _init(cls) is object.__init__:
        return {}
    parameters = dict(inspect.signature(cls).parameters)
    for name, parameter in parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY and not is_dataclass(cls):
            raise ConfigError(f"{cls.__qualname__}.__init__: {name} must be keyword-only")
    return parameters


def _hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(_init(cls), include_extras=True) if _parameters(cls) else {}
    for name in _parameters(cls):
        if name not in hints:
            raise ConfigError(f"{cls.__qualname__}.__init__: {name} must have a type")
    return hints


def _init(cls: type) -> Any:
    return inspect.getattr_static(cls, "__init__")


def _range(hint: Any) -> Range | None:
    """The bounds that stand in a type, at whatever depth."""
    within = (part if isinstance(part, Range) else _range(part) for part in get_args(hint))
    return next(filter(None, within), None)


def _type_name(hint: Any) -> str:
    """A type as people write it: ``tuple[int | 'all', ...]``."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _type_name(parts[0])
    if origin is Literal:
        return " | ".join(map(repr, parts))
    if origin in (Union, UnionType):
        return " | ".join(map(_type_name, parts))
    if origin is not None and parts:
        return (
            f"{_type_name(origin)}[{', '.join('...' if part is ... else _type_name(part) for part in parts)}]"
        )
    return "None" if hint is type(None) else inspect.formatannotation(hint)


def _model(cls: type) -> type[BaseModel]:
    hints = _hints(cls)
    fields: dict[str, Any] = {
        name: (hints[name], ... if parameter.default is inspect.Parameter.empty else parameter.default)
        for name, parameter in _parameters(cls).items()
    }
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())
    return create_model(cls.__name__, __config__=config, **fields)

"""Options of plugins: whatever stands, typed and keyword-only, in a class's ``__init__``.

A class that changes defaults of its base, or adds to its options, names these alone and passes the rest on. The base's
are then options of the class too:

    class Patient(Learner):
        def __init__(self, *, epochs: int = 90, momentum: float = 0.9, **options: Any) -> None:
            super().__init__(epochs=epochs, **options)
            self.momentum = momentum
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
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


def parameters(cls: type) -> dict[str, inspect.Parameter]:
    """The options of a plugin class as parameters, by name and with their types resolved.

    What its own ``__init__`` names stands first; then, where that has ``**options``, what the next one along the MRO
    names beside it.

    Raises
    ------
    ConfigError
        One of them may be positional, or has no type.
    """
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base) or base is object or vars(base).get("_is_protocol"):
            continue  # the ``__init__`` of an ability is only there to keep it from being made
        named = _named_by(base)
        for name, one in named.items():
            found.setdefault(name, one)
        if not any(one.kind is one.VAR_KEYWORD for one in named.values()):
            break
    return {name: one for name, one in found.items() if one.kind is not one.VAR_KEYWORD}


def options_of(cls: type) -> list[Option]:
    """The options of a plugin class, in the order of `parameters`.

    An option whose type is a dataclass is a group: its fields are shown as ``group.field``.
    """
    return [option for one in parameters(cls).values() for option in _shown(one)]


def groups_of(cls: type) -> dict[str, type]:
    """The dataclasses of the options of a plugin class that are groups, by the option's name."""
    return {
        name: cast(type, one.annotation)
        for name, one in parameters(cls).items()
        if is_dataclass(one.annotation)
    }


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
    for problem in _bools_for_numbers(given, vars(valid)):
        raise ConfigError(f"{what}: {problem}")
    return cls(**{name: getattr(valid, name) for name in valid.model_fields_set})


_NUMBERS = {int: "integer", float: "number"}
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


def _bools_for_numbers(given: Any, valid: Any, *where: str) -> Iterator[str]:
    """What is wrong where `valid` has a number for a bool that was given: pydantic takes true for 1."""
    match given, valid:
        case bool(), int() | float() if not isinstance(valid, bool):
            yield f"{'.'.join(where)} is {given}, expected a valid {_NUMBERS[type(valid)]}"
        case Mapping(), _:
            parts = valid if isinstance(valid, Mapping) else vars(valid)
            for name, value in given.items():
                yield from _bools_for_numbers(value, parts.get(name), *where, name)
        case [*values], [*made]:
            for place, pair in enumerate(zip(values, made, strict=False)):
                yield from _bools_for_numbers(*pair, *where, str(place))


def _check_names(cls: type, given: Mapping[str, Any], what: str) -> None:
    known = parameters(cls)
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"{what}: {unknown_name('option', name, known)}")
        if is_dataclass(group := known[name].annotation) and isinstance(value, Mapping):
            _check_names(cast(type, group), value, f"{what}: {name}")


def _completed(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, the part of a group that it names completed with this class's default for the rest."""
    known = parameters(cls)
    return {
        name: {**vars(known[name].default), **value}
        if is_dataclass(known[name].default) and isinstance(value, Mapping)
        else value
        for name, value in given.items()
    }


def _shown(parameter: inspect.Parameter) -> list[Option]:
    name, hint, default = parameter.name, parameter.annotation, parameter.default
    if not is_dataclass(hint):
        return [Option(name, _type_name(hint), default, _range(hint))]
    return [
        Option(f"{name}.{one.name}", one.type, getattr(default, one.name, one.default), one.range)
        for one in options_of(cast(type, hint))
    ]


def _named_by(cls: type) -> dict[str, inspect.Parameter]:
    """What stands in the ``__init__`` of this very class."""
    init = vars(cls)["__init__"]
    _, *own = inspect.signature(init).parameters.values()
    hints = get_type_hints(init, include_extras=True)
    for one in own:
        if one.kind not in (one.KEYWORD_ONLY, one.VAR_KEYWORD) and not is_dataclass(cls):
            raise ConfigError(f"{cls.__qualname__}.__init__: {one.name} must be keyword-only")
        if one.name not in hints:
            raise ConfigError(f"{cls.__qualname__}.__init__: {one.name} must have a type")
    return {one.name: one.replace(annotation=hints[one.name]) for one in own}


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
    fields: dict[str, Any] = {
        name: (one.annotation, ... if one.default is one.empty else one.default)
        for name, one in parameters(cls).items()
    }
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())
    return create_model(cls.__name__, __config__=config, **fields)

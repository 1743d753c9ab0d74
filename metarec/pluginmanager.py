"""Finds plugins and keeps what they register."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pkgutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from metarec import __version__, hookspecs
from metarec.errors import ConfigError, PluginError, unknown_name
from metarec.options import build

ENTRY_POINT_GROUP = "metarec"
BUILT_INS = "metarec.plugins"


class PluginWarning(UserWarning):
    """An installed plugin was left out, or one that is not there was to be."""


class Registry(Mapping[str, Any]):
    """The things of one kind that plugins registered, by name.

    Parameters
    ----------
    kind : str
        What one of them is called, such as ``"algorithm"``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._things: dict[str, Any] = {}
        self._owners: dict[str, str] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._things:
            raise ConfigError(unknown_name(self.kind, name, self._things))
        return self._things[name]

    def __contains__(self, name: object) -> bool:
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._things))

    def __len__(self) -> int:
        return len(self._things)

    def owner(self, name: str) -> str:
        """The plugin that registered `name`."""
        return self._owners[name]

    def create(self, name: str, **options: Any) -> Any:
        """An instance of the class registered as `name`, its options validated.

        Raises
        ------
        ConfigError
            No such name or option (with the nearest right one), a wrong type, or a value out of range.
        """
        return build(self[name], options, what=f"{self.kind} {name!r}")

    def add(self, name: str, thing: Any, owner: str) -> None:
        """Register `thing` for the plugin `owner`."""
        if name in self._things:
            raise PluginError(
                f"{self.kind} {name!r} is registered by two plugins: {self._owners[name]!r} and {owner!r}"
            )
        self._things[name] = thing
        self._owners[name] = owner

    def remove(self, owner: str) -> None:
        """Take out all that the plugin `owner` registered."""
        for name in [name for name, its in self._owners.items() if its == owner]:
            del self._things[name], self._owners[name]


class PluginManager(pluggy.PluginManager):
    """A pluggy manager that keeps a registry per `register_*` hook, filled as plugins come in."""

    def __init__(self) -> None:
        super().__init__("metarec")
        self.add_hookspecs(hookspecs)
        self.algorithms = Registry("algorithm")
        self.metrics = Registry("metric")
        self.datasets = Registry("dataset")
        self.protocols = Registry("protocol")
        self.encoders = Registry("encoder")
        self.reporters = Registry("reporter")
        self.commands = Registry("command")
        self.left_out: dict[str, str] = {}
        """Installed plugins that could not be loaded, and why."""

    @property
    def registries(self) -> dict[str, Registry]:
        """The registries by the plural of their kind, as `metarec list` takes it."""
        return {
            name.removeprefix("register_"): getattr(self, name.removeprefix("register_"))
            for name in sorted(vars(hookspecs))
            if name.startswith("register_")
        }

    def register(self, plugin: Any, name: str | None = None) -> str | None:
        """Add a plugin and all that it registers, or nothing of it.

        Raises
        ------
        PluginError
            It has a hook that does not exist or takes wrong arguments, its registration fails, it claims a name that
            another plugin has, or it is registered already.
        """
        called = name or self.get_canonical_name(plugin)
        self._check_hooks(plugin, called)
        if self.has_plugin(called) or self.is_registered(plugin):
            raise PluginError(f"plugin {called!r} is already registered")
        try:
            registered = super().register(plugin, name)
            if registered is not None:  # else it is blocked by name
                self._collect(plugin, registered)
        except Exception as error:
            if self.is_registered(plugin):
                self.unregister(plugin)
            if isinstance(error, PluginError):
                raise
            raise PluginError(f"plugin {called!r}: {_one_line(error)}") from error
        return registered

    def unregister(self, plugin: Any = None, name: str | None = None) -> Any:
        """Remove a plugin and all that it registered."""
        owner = name or self.get_name(plugin)
        for registry in self.registries.values():
            registry.remove(owner or "")
        return super().unregister(plugin, name)

    def is_built_in(self, name: str) -> bool:
        """Whether the plugin `name` is a part of metarec."""
        return getattr(self.get_plugin(name), "__name__", "").startswith(f"{BUILT_INS}.")

    def version(self, name: str) -> str | None:
        """The version of the package that brings the plugin `name`; None for one from a file."""
        if self.is_built_in(name):
            return __version__
        installed = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
        return next((point.dist.version for point in installed if point.name == name and point.dist), None)

    def register_file(self, path: Path) -> None:
        """Load a plugin from a Python file.

        Raises
        ------
        PluginError
            The file is missing, fails to import, or is no valid plugin.
        """
        if not path.is_file():
            raise PluginError(f"plugin {str(path)!r}: no such file")
        spec = importlib.util.spec_from_file_location(f"metarec_plugin_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise PluginError(f"plugin {str(path)!r}: expected a Python file (.py)")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # typing and dataclasses look a class's module up there
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise PluginError(f"plugin {str(path)!r}: {_one_line(error)}") from error
        if not self._hooks_of(module):
            raise PluginError(f"plugin {str(path)!r}: has no function marked with metarec.hookimpl")
        self.register(module, name=str(path))

    def _hooks_of(self, plugin: Any) -> list[str]:
        """The names of the hooks that a plugin implements."""
        marked = ((name, self.parse_hookimpl_opts(plugin, name)) for name in dir(plugin))
        return [marks["specname"] or name for name, marks in marked if marks is not None]

    def _check_hooks(self, plugin: Any, called: str) -> None:
        known = [name for name in vars(hookspecs) if hasattr(getattr(hookspecs, name), "metarec_spec")]
        for name in self._hooks_of(plugin):
            if name not in known:
                raise PluginError(f"plugin {called!r}: {unknown_name('hook', name, known)}")

    def _collect(self, plugin: Any, owner: str) -> None:
        others = [other for other in self.get_plugins() if other is not plugin]
        for kind, registry in self.registries.items():
            hook = self.subset_hook_caller(f"register_{kind}", others)
            hook(register=_registrar(registry, owner))


def create_plugin_manager(*, installed: bool = True) -> PluginManager:
    """A fresh manager with the built-in plugins and, unless `installed` is False, those of installed packages.

    ``METAREC_DISABLED_PLUGINS`` names plugins to leave out, separated by commas; ``METAREC_TRACE_PLUGINS=1`` writes
    every hook call to standard error. A package whose plugin cannot be loaded is named in a `PluginWarning` and left
    out.
    """
    manager = PluginManager()
    entry_points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP) if installed else ()
    disabled = filter(None, map(str.strip, os.environ.get("METAREC_DISABLED_PLUGINS", "").split(",")))
    built_in = {module.__name__.removeprefix(f"{BUILT_INS}."): module for module in _built_ins()}
    known = {*built_in, *(entry_point.name for entry_point in entry_points)}
    for name in disabled:
        manager.set_blocked(name)
        if installed and name not in known:
            text = unknown_name("plugin", name, known)
            warnings.warn(f"METAREC_DISABLED_PLUGINS: {text}", PluginWarning, stacklevel=2)
    if os.environ.get("METAREC_TRACE_PLUGINS", "0") not in ("", "0"):
        manager.trace.root.setwriter(sys.stderr.write)
        manager.enable_tracing()
    for name, module in built_in.items():
        manager.register(module, name=name)
    for entry_point in entry_points:
        _register_installed(manager, entry_point)
    manager.check_pending()
    return manager


@cache
def plugin_manager() -> PluginManager:
    """The manager that the program uses."""
    return create_plugin_manager()


def _built_ins() -> Iterator[ModuleType]:
    try:
        package = importlib.import_module(BUILT_INS)
    except ModuleNotFoundError:
        where = Path(__file__).parent
        raise PluginError(
            f"{where}: is a source tree, not an installed metarec: pip install -e . there, or leave that folder"
        ) from None
    for info in pkgutil.walk_packages(package.__path__, f"{BUILT_INS}."):
        if not info.ispkg:
            yield importlib.import_module(info.name)


def _register_installed(manager: PluginManager, entry_point: importlib.metadata.EntryPoint) -> None:
    if manager.is_blocked(entry_point.name):
        return
    try:
        manager.register(entry_point.load(), name=entry_point.name)
    except Exception as error:
        what = _one_line(error).removeprefix(f"plugin {entry_point.name!r}: ")
        manager.left_out[entry_point.name] = what
        warnings.warn(f"plugin {entry_point.name!r} is left out: {what}", PluginWarning, stacklevel=2)


def _registrar(registry: Registry, owner: str) -> Callable[[Any], None]:
    def register(thing: Any) -> None:
        name = getattr(thing, "name", None) or getattr(thing, "__name__", "").replace("_", "-")
        registry.add(name, thing, owner)

    return register


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, PluginError) else f"{type(error).__name__}: {text}"

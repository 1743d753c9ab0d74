"""Plugins are found, what they register is kept with its owner, and what is wrong with one is said and left out."""

import subprocess
import sys
import textwrap

import pytest

from metarec import hookimpl, hookspecs
from metarec.errors import ConfigError, PluginError
from metarec.pluginmanager import PluginManager, PluginWarning, create_plugin_manager, plugin_manager

PLUGIN = """
    from metarec import hookimpl
    from metarec.evaluation import Metric

    class Mine:
        name = "{name}"

    @hookimpl
    def register_{kind}(register):
        register(Mine)
"""


def plugin_text(kind="metrics", name="mine"):
    return textwrap.dedent(PLUGIN.format(kind=kind, name=name))


def plugin_file(folder, text=None, name="mine.py"):
    path = folder / name
    path.write_text(plugin_text() if text is None else textwrap.dedent(text), encoding="utf-8")
    return path


def plugin(**hooks):
    """A plugin that has these functions as its hooks."""
    return type("Plugin", (), {name: staticmethod(hookimpl(hook)) for name, hook in hooks.items()})


def registers(kind, *things):
    """A plugin that registers `things`."""

    def register_things(register):
        for thing in things:
            register(thing)

    return plugin(**{f"register_{kind}": register_things})


def thing(name):
    return type("Thing", (), {"name": name})


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A function that lays an installed package with an entry point on the path: module's text, entry point's name."""

    def lay(text, name="fake-plugin", module="fake_plugin"):
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(text), encoding="utf-8")
        info = tmp_path / f"{module}-1.2.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.2.3\n")
        (info / "entry_points.txt").write_text(f"[metarec]\n{name} = {module}\n")
        monkeypatch.syspath_prepend(tmp_path)

    yield lay
    for module in [name for name in sys.modules if name.startswith("fake_plugin")]:
        del sys.modules[module]


def problem(call, *args, **kwargs):
    with pytest.raises(PluginError) as raised:
        call(*args, **kwargs)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def contents(manager):
    return {
        kind: {name: things.owner(name) for name in things} for kind, things in manager.registries.items()
    }


def test_there_is_a_registry_for_every_register_hook():
    hooks = {name.removeprefix("register_") for name in vars(hookspecs) if name.startswith("register_")}
    assert set(PluginManager().registries) == hooks


def test_built_ins_are_named_after_their_place():
    manager = create_plugin_manager(installed=False)
    assert manager.algorithms.owner("entity-mean") == "algorithms.entity_mean"
    assert manager.encoders.owner("numeric") == "encoders.numeric"
    assert manager.version("encoders.numeric") == manager.version("algorithms.bias") is not None
    kinds = {owner.split(".")[0] for things in contents(manager).values() for owner in things.values()}
    assert kinds <= {"algorithms", "metrics", "datasets", "protocols", "encoders", "reporters"}


def test_managers_are_apart_and_the_program_has_one():
    one, other = create_plugin_manager(installed=False), create_plugin_manager(installed=False)
    one.register(registers("metrics", thing("mine")), name="mine")
    assert "mine" in one.metrics and "mine" not in other.metrics
    assert plugin_manager() is plugin_manager()


def test_a_registry_is_sorted_and_knows_the_nearest_name():
    manager = PluginManager()
    manager.register(registers("algorithms", thing("b"), thing("a"), thing("c")), name="mine")
    assert list(manager.algorithms) == ["a", "b", "c"] and len(manager.algorithms) == 3
    with pytest.raises(ConfigError, match=r"^unknown algorithm 'd': expected one of a, b, c$"):
        manager.algorithms["d"]
    with pytest.raises(ConfigError, match=r"^unknown encoder 'numerc': did you mean 'numeric'\?$"):
        plugin_manager().encoders.create("numerc")


def test_create_says_which_thing_was_given_a_wrong_option():
    with pytest.raises(
        ConfigError, match=r"^algorithm 'bias': unknown option 'iteratons': did you mean 'iterations'\?$"
    ):
        plugin_manager().algorithms.create("bias", iteratons=3)


def test_a_function_is_registered_by_its_name():
    def show_more() -> None: ...

    manager = PluginManager()
    manager.register(registers("commands", show_more), name="mine")
    assert manager.commands["show-more"] is show_more


def test_a_name_clash_names_both_owners_and_takes_nothing_of_the_second():
    manager = PluginManager()
    manager.register(registers("metrics", thing("mine")), name="first")
    before = contents(manager)
    said = problem(manager.register, registers("metrics", thing("new"), thing("mine")), name="second")
    assert said == "metric 'mine' is registered by two plugins: 'first' and 'second'"
    assert contents(manager) == before and manager.get_plugin("second") is None


def test_two_kinds_may_share_a_name():
    manager = PluginManager()
    manager.register(registers("metrics", thing("mine")), name="first")
    manager.register(registers("algorithms", thing("mine")), name="second")
    assert manager.metrics.owner("mine") == "first" and manager.algorithms.owner("mine") == "second"


def test_a_misspelt_hook_is_named_with_the_nearest():
    manager = PluginManager()
    said = problem(manager.register, registers("algoritms", thing("mine")), name="mine")
    assert said == "plugin 'mine': unknown hook 'register_algoritms': did you mean 'register_algorithms'?"
    assert manager.get_plugins() == set()


def test_a_hook_with_a_wrong_argument_is_refused_whole():
    def before_fit(algorithm, dataset):
        raise AssertionError("must not be called")

    wrong = registers("algorithms", thing("mine"))
    wrong.before_fit = staticmethod(hookimpl(before_fit))
    manager = PluginManager()
    said = problem(manager.register, wrong, name="wrong")
    assert said.startswith("plugin 'wrong': ") and "before_fit(algorithm, dataset)" in said
    assert len(manager.algorithms) == 0 and manager.get_plugins() == set()
    manager.hook.before_fit(algorithm=None, train=None)


def test_a_registration_that_fails_is_named_and_undone():
    def register_metrics(register):
        register(thing("mine"))
        raise RuntimeError("no\nluck")

    manager = PluginManager()
    failing = plugin(register_metrics=register_metrics)
    assert problem(manager.register, failing, name="mine") == "plugin 'mine': RuntimeError: no luck"
    assert "mine" not in manager.metrics and manager.get_plugin("mine") is None


def test_registering_twice_is_refused_and_the_first_stays():
    manager = PluginManager()
    mine = registers("metrics", thing("mine"))
    manager.register(mine, name="mine")
    assert problem(manager.register, mine, name="mine") == "plugin 'mine' is already registered"
    assert problem(manager.register, mine, name="again") == "plugin 'again' is already registered"
    assert manager.metrics.owner("mine") == "mine"


def test_unregistering_takes_out_what_was_registered():
    manager = PluginManager()
    mine = registers("metrics", thing("mine"))
    manager.register(registers("metrics", thing("other")), name="other")
    manager.register(mine, name="mine")
    manager.unregister(mine)
    assert list(manager.metrics) == ["other"]
    manager.unregister(name="other")
    assert list(manager.metrics) == []


def test_a_late_plugin_is_told_the_configuration():
    told = []

    def configure(config):
        told.append(config)

    manager = PluginManager()
    manager.hook.configure.call_historic(kwargs={"config": "the run"})
    manager.register(plugin(configure=configure), name="late")
    assert told == ["the run"]


def test_a_late_plugin_that_fails_at_the_configuration_is_undone():
    def configure(config):
        raise RuntimeError(config)

    manager = PluginManager()
    manager.hook.configure.call_historic(kwargs={"config": "the run"})
    failing = plugin(configure=configure)
    assert problem(manager.register, failing, name="late") == "plugin 'late': RuntimeError: the run"
    assert manager.get_plugins() == set()


def test_a_hook_may_have_a_name_of_its_own():
    def mine(register):
        register(thing("mine"))

    manager = PluginManager()
    named = type("Plugin", (), {"mine": staticmethod(hookimpl(mine, specname="register_metrics"))})
    manager.register(named, name="mine")
    assert "mine" in manager.metrics


def test_an_installed_plugin_is_found_by_its_entry_point(install):
    install(plugin_text(name="mine"))
    manager = create_plugin_manager()
    assert manager.metrics.owner("mine") == "fake-plugin"
    assert manager.version("fake-plugin") == "1.2.3"
    assert manager.left_out == {}
    assert "mine" not in create_plugin_manager(installed=False).metrics


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("def (", "SyntaxError: invalid syntax (fake_plugin.py, line 1)"),
        (plugin_text(kind="metric"), "unknown hook 'register_metric': did you mean 'register_metrics'?"),
        (
            plugin_text(name="rmse"),
            "metric 'rmse' is registered by two plugins: 'metrics.rating' and 'fake-plugin'",
        ),
    ],
    ids=["missing import", "syntax", "misspelt hook", "name clash"],
)
def test_a_broken_installed_plugin_is_named_and_left_out_while_the_rest_works(install, text, why):
    install(text)
    with pytest.warns(PluginWarning) as warned:
        manager = create_plugin_manager()
    assert [str(warning.message) for warning in warned] == [f"plugin 'fake-plugin' is left out: {why}"]
    assert manager.left_out == {"fake-plugin": why}
    assert contents(manager) == contents(create_plugin_manager(installed=False))


def test_disabled_plugins_are_not_even_imported(install, monkeypatch):
    install("raise AssertionError('must not be imported')")
    monkeypatch.setenv("METAREC_DISABLED_PLUGINS", "fake-plugin, encoders.numeric,")
    manager = create_plugin_manager()
    assert manager.left_out == {} and "fake_plugin" not in sys.modules
    assert "numeric" not in manager.encoders and "categorical" in manager.encoders


def test_a_disabled_plugin_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("METAREC_DISABLED_PLUGINS", "encoders.numerik")
    with pytest.warns(
        PluginWarning, match="METAREC_DISABLED_PLUGINS: unknown plugin 'encoders.numerik': did you mean"
    ):
        manager = create_plugin_manager()
    assert "numeric" in manager.encoders


def test_a_file_is_a_plugin(tmp_path):
    path = plugin_file(tmp_path)
    manager = PluginManager()
    manager.register_file(path)
    assert manager.metrics.owner("mine") == str(path)
    assert manager.version(str(path)) is None
    assert "already registered" in problem(manager.register_file, path)


def test_a_file_may_hold_dataclasses_and_typed_options(tmp_path):
    text = """
        from __future__ import annotations
        from dataclasses import dataclass
        from typing import Annotated, ClassVar
        from metarec import Range, hookimpl

        @dataclass
        class State:
            kind: ClassVar[str] = "state"

        class Mine:
            name = "mine"
            def __init__(self, *, rank: Annotated[int, Range(1, 4)] = 2) -> None:
                self.rank = rank

        @hookimpl
        def register_algorithms(register):
            register(Mine)
    """
    manager = PluginManager()
    manager.register_file(plugin_file(tmp_path, text))
    assert manager.algorithms.create("mine", rank=4).rank == 4
    with pytest.raises(ConfigError, match=r"algorithm 'mine': rank is 5, expected less than or equal to 4"):
        manager.algorithms.create("mine", rank=5)


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("mine.py", None, "no such file"),
        ("mine.txt", "", "expected a Python file (.py)"),
        ("mine.py", "x = 1", "has no function marked with metarec.hookimpl"),
        ("mine.py", "1 / 0", "ZeroDivisionError: division by zero"),
        (
            "mine.py",
            "from metarec import Rnage",
            "ImportError: cannot import name 'Rnage' from 'metarec'",
        ),
        (
            "mine.py",
            plugin_text(kind="metric"),
            "unknown hook 'register_metric': did you mean 'register_metrics'?",
        ),
    ],
    ids=["missing", "no Python", "no hook", "error", "import", "misspelt hook"],
)
def test_a_file_that_is_no_plugin_is_named(tmp_path, name, text, why):
    path = tmp_path / name if text is None else plugin_file(tmp_path, text, name)
    assert problem(PluginManager().register_file, path).startswith(f"plugin {str(path)!r}: {why}")


def test_tracing_writes_every_call_to_standard_error():
    program = "from metarec import create_plugin_manager as create; create().hook.after_evaluate(report=7)"
    command = [sys.executable, "-P", "-c", program]
    traced = subprocess.run(
        command, capture_output=True, text=True, check=True, env={"METAREC_TRACE_PLUGINS": "1"}
    )
    silent = subprocess.run(
        command, capture_output=True, text=True, check=True, env={"METAREC_TRACE_PLUGINS": "0"}
    )
    assert "after_evaluate" in traced.stderr and "report: 7" in traced.stderr
    assert silent.stderr == ""

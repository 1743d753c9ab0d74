"""The hook file is the table of contents of what can be extended: all of it is typed and documented."""

import inspect

import pytest

from metarec import hookspecs

HOOKS = {name: hook for name, hook in vars(hookspecs).items() if hasattr(hook, "metarec_spec")}


def test_hooks_are_those_of_the_design():
    things = ("algorithms", "metrics", "datasets", "protocols", "encoders", "reporters", "commands")
    life_cycle = {"configure", "before_fit", "after_epoch", "after_fit", "after_evaluate"}
    assert set(HOOKS) == {f"register_{thing}" for thing in things} | life_cycle


@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
def test_hook_is_one_typed_line_with_one_line_of_documentation(hook):
    signature = inspect.getsource(hook).split("\n")[1]
    assert signature.startswith("def ") and signature.endswith(" -> None:")
    assert all(parameter.annotation for parameter in inspect.signature(hook).parameters.values())
    assert hook.__doc__ and "\n" not in hook.__doc__ and hook.__doc__.endswith(".")


@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
def test_every_argument_is_documented(hook):
    for argument in inspect.signature(hook).parameters:
        where = hookspecs.__doc__ if argument == "register" else hook.__doc__
        assert f"`{argument}`" in where, f"{hook.__name__}: {argument} is not documented"


def test_only_configure_is_told_to_late_plugins():
    assert [name for name, hook in HOOKS.items() if hook.metarec_spec["historic"]] == ["configure"]

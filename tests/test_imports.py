"""Imports point one way: cli → experiment → serving, evaluation → learning → tasks → features → data → nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import metarec

ROOT = Path(metarec.__file__).parent

# Each module may import those of the rows above its own, and its own package.
LAYERS = (
    ("errors", "atomic", "ops"),
    ("options", "hookspecs", "build", "sealed"),
    ("config", "device", "pluginmanager"),
    ("data",),
    ("features",),
    ("tasks",),
    ("learning",),
    ("evaluation", "serving"),
    ("artifact",),
    ("experiment", "testing", "describe", "progress"),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
MODULES = [path for path in sorted(ROOT.rglob("*.py")) if "plugins" not in path.relative_to(ROOT).parts]


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """The parts of metarec that a module imports when it runs; what is for type checkers only does not count."""
    found = set()
    for node in run_time_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = node.module or ""
            names = [f"metarec.{alias.name}" for alias in node.names] if module == "metarec" else [module]
        found |= {name.split(".")[1] for name in names if name.startswith("metarec.")}
    return {metarec._HOME.get(name, name) for name in found} - {"__version__"}


def run_time_nodes(node: ast.AST):
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield child
            yield from run_time_nodes(child)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_lower_layers_only(path):
    here = part(path)
    if here == "__init__":
        assert imported_parts(path) == set()
        return
    for other in imported_parts(path) - {here}:
        assert RANK[other] < RANK[here], f"{path.name} of {here} imports {other}"


def test_only_the_plugin_manager_knows_the_built_in_plugins():
    assert [path.name for path in MODULES if "metarec.plugins" in path.read_text()] == ["pluginmanager.py"]


def modules_after(code: str) -> set[str]:
    program = f"import sys; {code}; print(*sys.modules)"
    command = [sys.executable, "-P", "-c", program]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_importing_metarec_or_its_command_line_loads_nothing_heavy():
    loaded = modules_after("import metarec, metarec.cli, metarec.config, metarec.hookspecs")
    assert not loaded & {"torch", "polars", "numpy", "matplotlib", "metarec.plugins"}


def test_built_in_plugins_are_a_part_of_metarec():
    loaded = modules_after("from metarec.pluginmanager import plugin_manager; plugin_manager()")
    assert "metarec.plugins.encoders.numeric" in loaded
    assert "plugins" not in loaded


def test_every_public_name_is_there_and_typed():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    for_type_checkers = next(node for node in tree.body if isinstance(node, ast.If)).body
    assert {alias.name for node in for_type_checkers for alias in node.names} == set(metarec._HOME)
    assert all(getattr(metarec, name) is not None for name in metarec._HOME)


def test_a_wrong_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'metarec' has no attribute 'Recomender'"):
        _ = metarec.Recomender

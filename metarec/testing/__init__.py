"""For plugin authors: a suite that says what is wrong with an algorithm, a small world to try it on, and fixtures.

    from metarec.testing import AlgorithmConformance

    class TestMine(AlgorithmConformance):
        algorithm = Mine

``pytest_plugins = ["metarec.testing.fixtures"]`` in a ``conftest.py`` brings the fixtures.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metarec.testing.conformance import AlgorithmConformance as AlgorithmConformance
    from metarec.testing.oracles import Check as Check
    from metarec.testing.oracles import verify as verify
    from metarec.testing.world import SmallWorld as SmallWorld
    from metarec.testing.world import small_world as small_world

# Looked up when first used: the suite needs pytest, the rest does not.
_HOME = {
    "AlgorithmConformance": "conformance",
    "Check": "oracles",
    "SmallWorld": "world",
    "small_world": "world",
    "verify": "oracles",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'metarec.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(f"metarec.testing.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})

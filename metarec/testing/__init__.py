"""For plugin authors: a suite that says what is wrong with an algorithm, a small world to try it on, and fixtures.

    from metarec.testing import AlgorithmConformance

    class TestMine(AlgorithmConformance):
        algorithm = Mine

``pytest_plugins = ["metarec.testing.fixtures"]`` in a ``conftest.py`` brings the fixtures.
"""

from metarec.testing.conformance import AlgorithmConformance
from metarec.testing.world import SmallWorld, small_world

__all__ = ["AlgorithmConformance", "SmallWorld", "small_world"]

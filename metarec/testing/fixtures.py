"""Fixtures of pytest for plugin authors."""

import pytest

from metarec.pluginmanager import PluginManager, create_plugin_manager


@pytest.fixture
def fresh_plugin_manager() -> PluginManager:
    """A plugin manager of this test alone, with the built-in plugins: ``fresh_plugin_manager.register(my_module)``."""
    return create_plugin_manager(installed=False)

"""metarec: recommenders that learn to learn.

The public names are looked up when they are first used, so that ``import metarec`` takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metarec.artifact import load as load
    from metarec.artifact import save as save
    from metarec.build import build_info as build_info
    from metarec.build import cmake_prefix_path as cmake_prefix_path
    from metarec.build import get_include as get_include
    from metarec.config import RunConfig as RunConfig
    from metarec.data import Columns as Columns
    from metarec.data import Dataset as Dataset
    from metarec.data import Entities as Entities
    from metarec.data import RatingScale as RatingScale
    from metarec.data import from_frame as from_frame
    from metarec.data import from_matrix as from_matrix
    from metarec.errors import MetarecError as MetarecError
    from metarec.experiment import create_algorithm as create_algorithm
    from metarec.experiment import load_dataset as load_dataset
    from metarec.experiment import run_experiment as run_experiment
    from metarec.experiment import split as split
    from metarec.hookspecs import hookimpl as hookimpl
    from metarec.learning import Adapted as Adapted
    from metarec.learning import Algorithm as Algorithm
    from metarec.learning import Prediction as Prediction
    from metarec.learning import Run as Run
    from metarec.options import Range as Range
    from metarec.pluginmanager import create_plugin_manager as create_plugin_manager
    from metarec.serving import Recommender as Recommender
    from metarec.tasks import Query as Query
    from metarec.tasks import Split as Split
    from metarec.tasks import Support as Support
    from metarec.tasks import Tasks as Tasks

__version__ = "0.1.0"

_HOMES = {
    "artifact": ("load", "save"),
    "build": ("build_info", "cmake_prefix_path", "get_include"),
    "config": ("RunConfig",),
    "data": ("Columns", "Dataset", "Entities", "RatingScale", "from_frame", "from_matrix"),
    "errors": ("MetarecError",),
    "experiment": ("create_algorithm", "load_dataset", "run_experiment", "split"),
    "hookspecs": ("hookimpl",),
    "learning": ("Adapted", "Algorithm", "Prediction", "Run"),
    "options": ("Range",),
    "pluginmanager": ("create_plugin_manager",),
    "serving": ("Recommender",),
    "tasks": ("Query", "Split", "Support", "Tasks"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'metarec' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"metarec.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})

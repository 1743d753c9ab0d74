"""A split that the floors are fitted on, and its parts as pandas frames."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from metarec.data import Dataset
from metarec.pluginmanager import create_plugin_manager
from metarec.tasks import Split, Tasks


def _split(dataset: Dataset) -> Split:
    sizes = (0, 1, 4, "all")
    return (
        create_plugin_manager(installed=False)
        .protocols.create("cold-start", support_sizes=sizes)
        .split(dataset, seed=0)
    )


@pytest.fixture(scope="session")
def explicit(make_dataset: Callable[..., Dataset]) -> Split:
    """Ratings from 1 to 5."""
    return _split(make_dataset(users=70, items=60, density=0.4))


@pytest.fixture(scope="session")
def implicit(make_dataset: Callable[..., Dataset]) -> Split:
    """What was chosen."""
    return _split(make_dataset(users=70, items=60, density=0.4, implicit=True))


@pytest.fixture(scope="session")
def frame() -> Callable[[Dataset], pd.DataFrame]:
    """A function that gives interactions as a frame, the ratings in float64."""

    def of(train: Dataset) -> pd.DataFrame:
        return pd.DataFrame(
            {"user": train.user, "item": train.item, "rating": train.rating.numpy().astype(np.float64)}
        )

    return of


@pytest.fixture(scope="session")
def supports() -> Callable[[Tasks], list[np.ndarray]]:
    """A function that gives each task's support ratings, in float64."""

    def of(tasks: Tasks) -> list[np.ndarray]:
        ratings = tasks.support.rating.numpy().astype(np.float64)
        return np.split(ratings, tasks.support.offsets[1:-1].numpy())

    return of

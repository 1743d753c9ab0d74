"""Tasks and algorithms that are small enough to be checked by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from metarec.data import Dataset
from metarec.learning import Adapted, Algorithm, Prediction
from metarec.pluginmanager import create_plugin_manager
from metarec.tasks import Split


@dataclass(frozen=True)
class Told(Adapted):
    """Which entity's row of a table a task reads."""

    row: Tensor


class Table(Algorithm):
    """Predicts what stands in a table of entities by partners; only for tests."""

    name = "table"

    def __init__(
        self, *, mean: Tensor, variance: Tensor | None = None, name: str = "table", is_floor: bool = False
    ) -> None:
        self.mean = mean
        self.variance = variance
        self.name = name  # type: ignore[misc]
        self.is_floor = is_floor  # type: ignore[misc]
        self.entity: Tensor | None = None

    def fit(self, train, *, valid=None, run=None):
        return self

    def adapt(self, support) -> Told:
        return Told(torch.arange(len(support)))

    def predict(self, adapted, query) -> Prediction:
        row = adapted.row[query.owner]
        variance = None if self.variance is None else self.variance[row, query.partner]
        return Prediction(self.mean[row, query.partner], variance)


@pytest.fixture
def table() -> type[Table]:
    """An algorithm that predicts what stands in a table of tasks by partners."""
    return Table


@pytest.fixture
def split(make_dataset: Callable[..., Dataset]) -> Split:
    """A generated data set, split by `cold-start`."""
    protocol = create_plugin_manager(installed=False).protocols.create(
        "cold-start", support_sizes=(0, 3, "all")
    )
    return protocol.split(make_dataset(seed=1), seed=0)

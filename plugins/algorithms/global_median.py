"""A floor: the median of all ratings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import numpy as np

from metarec import hookimpl
from metarec.data import Dataset
from metarec.learning import Algorithm, Level, LevelAlgorithm, Run, residual_variance
from metarec.tasks import Support, Tasks


class GlobalMedian(LevelAlgorithm):
    """Predicts the median of all training ratings, with their mean square around it."""

    name = "global-median"
    feedback = ("explicit",)
    is_floor = True

    def fit(self, train: Dataset, *, valid: Tasks | None = None, run: Run = Run()) -> Self:
        """Learn the median and the mean square around it."""
        self.median_ = float(np.median(train.rating.numpy()))
        self.variance_ = residual_variance(train.rating - self.median_)
        return self

    def adapt(self, support: Support) -> Level:
        """The same for every task."""
        tasks = (len(support),)
        return Level(
            mean=support.rating.new_full(tasks, self.median_),
            variance=support.rating.new_full(tasks, self.variance_),
        )


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `GlobalMedian`."""
    register(GlobalMedian)

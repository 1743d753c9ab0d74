"""A floor: the mean of all ratings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch

from metarec import hookimpl
from metarec.data import Dataset
from metarec.learning import Algorithm, Level, LevelAlgorithm, Run, residual_variance
from metarec.tasks import Support, Tasks


class GlobalMean(LevelAlgorithm):
    """Predicts the mean of all training ratings, with their variance."""

    name = "global-mean"
    feedback = ("explicit",)
    is_floor = True

    def fit(self, train: Dataset, *, valid: Tasks | None = None, run: Run = Run()) -> Self:
        """Learn mean and variance."""
        self.mean_ = float(train.rating.mean(dtype=torch.float64))
        self.variance_ = residual_variance(train.rating - self.mean_)
        return self

    def adapt(self, support: Support) -> Level:
        """The same for every task."""
        tasks = (len(support),)
        return Level(
            mean=support.rating.new_full(tasks, self.mean_),
            variance=support.rating.new_full(tasks, self.variance_),
        )


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `GlobalMean`."""
    register(GlobalMean)

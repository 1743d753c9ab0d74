"""A floor: the median of the entity's own ratings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import numpy as np
import torch

from metarec import hookimpl
from metarec.data import Dataset, Side
from metarec.learning import Algorithm, Level, LevelAlgorithm, Run, residual_variance
from metarec.tasks import Ragged, Support, Tasks


class EntityMedian(LevelAlgorithm):
    """Predicts the median of the n ratings in a task's support; with an empty one, the median of all ratings.

    The variance is σ² (1 + 1/n). σ² is the mean square of training ratings around the median of their own user (of
    their own item for item tasks), less one degree of freedom per median. With an empty support it is their mean
    square around the median of all.
    """

    name = "entity-median"
    feedback = ("explicit",)
    is_floor = True

    def fit(self, train: Dataset, *, valid: Tasks | None = None, run: Run = Run()) -> Self:
        """Learn the median of all ratings and the mean squares around it, within users and within items."""
        self.median_ = float(np.median(train.rating.numpy()))
        self.variance_ = residual_variance(train.rating - self.median_)
        self.within_ = {"user": _within(train, "user"), "item": _within(train, "item")}
        return self

    def adapt(self, support: Support) -> Level:
        """The median of each support."""
        empty = support.counts == 0
        variance = self.within_[support.side] * (1 + 1 / support.counts.to(support.rating.dtype))
        return Level(
            mean=support.median(support.rating).masked_fill(empty, self.median_),
            variance=variance.masked_fill(empty, self.variance_),
        )


def _within(train: Dataset, side: Side) -> float:
    lists = Ragged.grouped(train.rows(side).long(), len(train.entities(side)))
    rating = train.rating[lists.partner].to(torch.float64)
    fitted = int((lists.counts > 0).sum())
    return residual_variance(rating - lists.median(rating)[lists.owner], fitted=fitted)


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `EntityMedian`."""
    register(EntityMedian)

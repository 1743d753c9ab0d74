"""A whole plugin in one file: ``metarec --plugin examples/shrunk_mean.py run --algorithms shrunk-mean,bias``."""

from collections.abc import Callable
from typing import Annotated, Self

from metarec import Algorithm, Dataset, Range, Run, Support, Tasks, hookimpl
from metarec.learning import Level, LevelAlgorithm


class ShrunkMean(LevelAlgorithm):
    """The entity's mean rating, shrunk to the mean m of all: ``m + Σ (r − m) / (n + strength)``.

    It is the posterior mean of a level μ ~ N(m, σ²/strength) given n ratings r ~ N(μ, σ²); σ² is that of all ratings.

    Parameters
    ----------
    strength : float, default 5
        How many ratings the prior is worth.
    """

    name = "shrunk-mean"
    feedback = ("explicit",)

    def __init__(self, *, strength: Annotated[float, Range(0.01, 1000, log=True)] = 5.0) -> None:
        self.strength = strength

    def fit(self, train: Dataset, *, valid: Tasks | None = None, run: Run = Run()) -> Self:
        self.mean_, self.noise_ = float(train.rating.mean()), float(train.rating.var())
        return self

    def adapt(self, support: Support) -> Level:
        weight = support.counts.to(support.rating.dtype) + self.strength
        mean = self.mean_ + support.sum(support.rating - self.mean_) / weight
        return Level(mean, self.noise_ + self.noise_ / weight)


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    register(ShrunkMean)

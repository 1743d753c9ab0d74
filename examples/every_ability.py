"""A plugin with every optional ability: exact top-k by the native op, draws, updates, explanations.

``metarec --plugin examples/every_ability.py run --algorithms running-mean,bias``
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Self

import torch
from torch import Tensor

from metarec import Adapted, Algorithm, Dataset, Prediction, Query, Range, Run, Support, Tasks, hookimpl
from metarec.data import Side
from metarec.learning import Explanation
from metarec.tasks import EntityRows


@dataclass(frozen=True)
class Sums(Adapted):
    """All that a mean needs to know of its ratings.

    Parameters
    ----------
    total : float [T]
        Sum of the deviations from the mean of all ratings.
    count : float [T]
        Number of the ratings.
    """

    total: Tensor
    count: Tensor


class RunningMean(Algorithm):
    """The entity's mean rating, shrunk to the mean m of all: ``m + Σ (r − m) / (n + strength)``.

    Parameters
    ----------
    strength : float, default 5
        How many ratings the prior is worth.
    """

    name = "running-mean"
    feedback = ("explicit",)

    def __init__(self, *, strength: Annotated[float, Range(0.01, 1000, log=True)] = 5.0) -> None:
        self.strength = strength

    def fit(self, train: Dataset, *, valid: Tasks | None = None, run: Run = Run()) -> Self:
        """Learn mean and variance of all ratings."""
        rating = train.rating.to(run.device, run.dtype)
        self.mean_, self.noise_ = rating.mean(), rating.var()
        return self

    def adapt(self, support: Support) -> Sums:
        """Sum and number of each task's ratings."""
        return Sums(support.sum(support.rating - self.mean_), support.counts.to(support.rating.dtype))

    def predict(self, adapted: Adapted, query: Query) -> Prediction:
        """The same for all partners; what is unknown is the variance of the shrunk mean."""
        assert isinstance(adapted, Sums)
        mean, weight = self._mean(adapted), adapted.count + self.strength
        noise = self.noise_.expand(mean.shape)
        owner = query.owner
        return Prediction(mean[owner], (noise + noise / weight)[owner], noise[owner])

    def _mean(self, adapted: Sums) -> Tensor:
        return self.mean_ + adapted.total / (adapted.count + self.strength)

    def query_factors(self, adapted: Sums) -> Tensor:
        """`Factorized`: the mean."""
        return self._mean(adapted).unsqueeze(1)

    def candidate_factors(self, side: Side, partners: EntityRows) -> Tensor:
        """`Factorized`: 1, so that the product is the mean."""
        return self.mean_.new_ones(len(partners), 1)

    def draw(self, adapted: Sums, query: Query, count: int, *, generator: torch.Generator) -> Tensor:
        """`Generative`: the shrunk mean and what is unknown of it."""
        mean, weight = self._mean(adapted), adapted.count + self.strength
        noise = torch.randn(count, len(mean), generator=generator, dtype=mean.dtype, device=mean.device)
        return (mean + (self.noise_ / weight).sqrt() * noise)[:, query.owner]

    def absorb(self, adapted: Sums, rating: Support) -> Sums:
        """`Updatable`: one rating more."""
        one = self.adapt(rating)
        return Sums(adapted.total + one.total, adapted.count + one.count)

    def forget(self, adapted: Sums, rating: Support) -> Sums:
        """`Updatable`: one rating less."""
        one = self.adapt(rating)
        return Sums(adapted.total - one.total, adapted.count - one.count)

    def explain(self, adapted: Sums, support: Support, query: Query) -> Explanation:
        """`Explainable`: each rating adds its share of the shrunk sum."""
        offsets, entries = support.entries(query.owner)
        added = (support.rating - self.mean_) / (adapted.count + self.strength)[support.owner]
        baseline = self.mean_.expand(query.partner.numel())
        return Explanation(baseline, offsets, added[entries], kind="additive")


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `RunningMean`."""
    register(RunningMean)

"""A whole plugin in one file, with every ability: ``metarec run --plugin examples/shrunk_mean.py --algorithms shrunk-mean``."""

from dataclasses import dataclass
from typing import Annotated, Self

import torch
from torch import Tensor

from metarec import Adapted, Algorithm, Dataset, Prediction, Query, Range, Run, Support, Tasks, hookimpl
from metarec.learning import Explanation


@dataclass(frozen=True)
class Sums(Adapted):
    """Per task: the sum of its ratings' deviations from the mean, and their number."""

    total: Tensor
    count: Tensor


class ShrunkMean(Algorithm):
    """The entity's mean rating, shrunk to the mean m of all: ``m + Σ (r − m) / (n + strength)``.

    It is the posterior mean of an entity's level μ ~ N(m, σ²/strength) from ratings r ~ N(μ, σ²).

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
        rating = train.rating.to(run.device, run.dtype)
        self.mean_ = rating.mean()
        self.noise_ = rating.var()
        return self

    def adapt(self, support: Support) -> Sums:
        zeros = support.rating.new_zeros(len(support))
        total = zeros.index_add(0, support.owner, support.rating - self.mean_)
        return Sums(total, support.counts.to(zeros.dtype))

    def predict(self, adapted: Sums, query: Query) -> Prediction:
        mean = self.mean_ + adapted.total / (adapted.count + self.strength)
        noise = self.noise_.expand(mean.shape)
        variance = noise + noise / (adapted.count + self.strength)
        return Prediction(mean[query.owner], variance[query.owner], noise[query.owner])

    def query_factors(self, adapted: Sums) -> Tensor:
        return (self.mean_ + adapted.total / (adapted.count + self.strength)).unsqueeze(1)

    def candidate_factors(self, side: str, partners: object) -> Tensor:
        return self.mean_.new_ones(len(partners), 1)

    def absorb(self, adapted: Sums, rating: Support) -> Sums:
        one = self.adapt(rating)
        return Sums(adapted.total + one.total, adapted.count + one.count)

    def forget(self, adapted: Sums, rating: Support) -> Sums:
        one = self.adapt(rating)
        return Sums(adapted.total - one.total, adapted.count - one.count)

    def explain(self, adapted: Sums, support: Support, query: Query) -> Explanation:
        offsets, entries = support.entries(query.owner)
        added = (support.rating - self.mean_) / (adapted.count + self.strength)[support.owner]
        baseline = self.mean_.expand(query.partner.numel())
        return Explanation(baseline, offsets, added[entries], kind="additive")


@hookimpl
def register_algorithms(register):
    register(ShrunkMean)

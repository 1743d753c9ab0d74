"""Optional abilities, which the framework finds by looking for their methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from metarec.data import Side
from metarec.learning.algorithm import Adapted
from metarec.tasks import EntityRows, Query, Support


@runtime_checkable
class Factorized(Protocol):
    """Ranks a catalogue by a dot product, so that the k best are found exactly by `cosine_topk`."""

    def query_factors(self, adapted: Adapted) -> Tensor:
        """float [T, d]: one vector per task."""
        ...

    def candidate_factors(self, side: Side, partners: EntityRows) -> Tensor:
        """float [P, d]: one vector per partner of tasks on `side`; the dot product is what `ranks_by` says."""
        ...


@runtime_checkable
class Updatable(Protocol):
    """Takes in one more rating per task, or takes one out, without the others at hand."""

    def absorb(self, adapted: Adapted, rating: Support) -> Adapted:
        """As if `rating` (exactly one per task) had been in the support."""
        ...

    def forget(self, adapted: Adapted, rating: Support) -> Adapted:
        """As if `rating` (exactly one per task, which was in the support) had not been."""
        ...


@dataclass(frozen=True)
class Explanation:
    """What each support rating does to each prediction.

    Parameters
    ----------
    baseline : float [n]
        The predicted mean of each query partner with no rating in the support.
    offsets : int64 [n + 1]
        Query partner j's contributions are ``contribution[offsets[j] : offsets[j + 1]]``, one per rating of its task's
        support, in the support's order.
    contribution : float
        In units of the rating.
    kind : "additive" or "leave-one-out"
        Additive: baseline + contributions = mean, exactly. Leave-one-out: the mean less what it is without the rating.
    """

    baseline: Tensor
    offsets: Tensor
    contribution: Tensor
    kind: Literal["additive", "leave-one-out"]


@runtime_checkable
class Explainable(Protocol):
    """Says what each support rating adds to a prediction."""

    def explain(self, adapted: Adapted, support: Support, query: Query) -> Explanation:
        """Contributions of the support's ratings to each query partner's mean."""
        ...

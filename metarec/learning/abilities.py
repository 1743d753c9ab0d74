"""Optional abilities, which the framework finds by looking for their methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from metarec.data import Side
from metarec.learning.algorithm import Adapted, Algorithm
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
class Generative(Protocol):
    """Draws what the ratings may be expected to be: jointly, where `predict` gives each one's mean and variance."""

    def draw(self, adapted: Adapted, query: Query, count: int, *, generator: torch.Generator) -> Tensor:
        """float [count, n]: each row is one draw of every query partner's rating, without the noise.

        Within a row the ratings of a task belong together, such as by one draw of its parameters; the rows and the
        tasks are independent. `generator` is on the device of `adapted`.
        """
        ...


@runtime_checkable
class Diagnosed(Protocol):
    """Says how well it did its work, such as how many draws were of use; a report shows it beside the timings."""

    def diagnostics(self, adapted: Adapted) -> Mapping[str, Tensor]:
        """Figures by name, float [T] each."""
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


@torch.no_grad()
def leave_one_out(algorithm: Algorithm, adapted: Adapted, support: Support, query: Query) -> Explanation:
    """What each support rating does to each prediction, by adapting to the rest of its support.

    Parameters
    ----------
    algorithm : Algorithm
        Whose predictions are explained.
    adapted : Adapted
        What it made of `support`.
    support : Support
    query : Query

    Returns
    -------
    Explanation
        Of the kind "leave-one-out".
    """
    rest, asked = _without_each(support), query.select(support.owner)
    mean = algorithm.predict(adapted, query).mean
    entry = query.entries(support.owner)[1]
    effect = mean[entry] - algorithm.predict(algorithm.adapt(rest), asked).mean
    by_query = entry.argsort(stable=True)
    offsets = torch.cat([support.offsets[:1], support.counts[query.owner].cumsum(0)])
    baseline = algorithm.predict(algorithm.adapt(support.first(0)), query).mean
    return Explanation(baseline, offsets, effect[by_query], "leave-one-out")


def _without_each(support: Support) -> Support:
    """For each rating a task: the support that it stands in, without it."""
    entry = support.entries(support.owner)[1]
    each = support.select(support.owner)
    kept = entry != each.owner
    return replace(
        each,
        offsets=torch.cat([each.offsets[:1], (each.counts - 1).cumsum(0)]),
        partner=each.partner[kept],
        rating=each.rating[kept],
    )

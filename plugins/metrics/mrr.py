"""`mrr@k`: how early the first relevant one comes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metarec import hookimpl
from metarec.evaluation import Metric, RankingMetric, Scored, log_binomial


class MeanReciprocalRank(RankingMetric):
    """Reciprocal position of the first relevant partner, 0 if beyond the first k. Gain: 1 if relevant.

    Ties: the expectation over random order of equal scores. The first group with relevant partners decides: s
    partners are above it, r of its n are relevant, and the first relevant one is its j-th with chance
    ``C(n − j, r − 1) / C(n, r)``. Tasks without a relevant query partner are left out.

    Parameters
    ----------
    k : int, default 5
        Length of the list.
    """

    name = "mrr"

    def score(self, scored: Scored) -> Tensor:
        """float64 [T]: each task's expected reciprocal rank."""
        groups = scored.relevant_groups(self.k)
        above, first = (groups.relevant > 0).max(dim=1)
        relevant = groups.relevant.gather(1, first[:, None])
        size = groups.size.gather(1, first[:, None])
        place = torch.arange(1.0, self.k + 1, dtype=torch.float64, device=size.device)
        chance = torch.exp(log_binomial(size - place, relevant - 1) - log_binomial(size, relevant))
        rank = first[:, None] + place
        expected = (chance / rank * (rank <= self.k)).sum(dim=1) * above
        return expected.where(scored.relevant_counts > 0, float("nan"))


@hookimpl
def register_metrics(register: Callable[[type[Metric]], None]) -> None:
    """Register `MeanReciprocalRank`."""
    register(MeanReciprocalRank)

"""`map@k`: precision averaged over the places of the relevant ones."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from metarec import hookimpl
from metarec.evaluation import Metric, RankingMetric, Scored


class MeanAveragePrecision(RankingMetric):
    """Precision at the place of each relevant partner among the first k, averaged. Gain: 1 if relevant.

    ``Σ_p≤k rel_p · precision@p / min(R, k)``, R relevant partners in the query, so that 1 can be reached.

    Ties: the expectation over random order of equal scores. Let s partners be above a group of n, r of them
    relevant, and R_s relevant ones above it. At its j-th place stands a relevant one with chance r/n, and
    with it at each of the j − 1 places before it another with joint chance r(r − 1)/(n(n − 1)); so that place
    adds ``(r/n (R_s + 1) + (j − 1) r(r − 1)/(n(n − 1))) / (s + j)``. Tasks without a relevant query partner
    are left out.

    Parameters
    ----------
    k : int, default 5
        Length of the list.
    """

    name = "map"

    def score(self, scored: Scored) -> Tensor:
        """float64 [T]: each task's expected average precision."""
        groups = scored.relevant_groups(self.k)
        relevant, size = groups.relevant, groups.size
        above = relevant.cumsum(dim=1) - relevant
        reciprocals = groups.position_sums(1 / groups.positions)  # Σ_j 1 / (s + j)
        earlier = groups.within - (groups.start + 1) * reciprocals  # Σ_j (j − 1) / (s + j)
        pairs = relevant * (relevant - 1) / (size * (size - 1)).clamp(min=1)
        total = (relevant / size * (above + 1) * reciprocals + pairs * earlier).sum(dim=1)
        return total / scored.relevant_counts.clamp(max=self.k)


@hookimpl
def register_metrics(register: Callable[[type[Metric]], None]) -> None:
    """Register `MeanAveragePrecision`."""
    register(MeanAveragePrecision)

"""`precision@k`: how many of the first k are relevant."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from metarec import hookimpl
from metarec.evaluation import Metric, RankingMetric, Scored


class Precision(RankingMetric):
    """Relevant partners among the first k, over k (also where the list is shorter). Gain: 1 if relevant.

    Ties: a relevant partner counts with its chance of being among the first k in random order of equal scores
    (McSherry & Najork 2008). Tasks without a relevant query partner are left out.

    Parameters
    ----------
    k : int, default 5
        Length of the list.
    """

    name = "precision"

    def score(self, scored: Scored) -> Tensor:
        """float64 [T]: each task's expected precision."""
        found = scored.task_sum(scored.relevant * scored.chance_within(self.k))
        return found.where(scored.relevant_counts > 0, float("nan")) / self.k


@hookimpl
def register_metrics(register: Callable[[type[Metric]], None]) -> None:
    """Register `Precision`."""
    register(Precision)

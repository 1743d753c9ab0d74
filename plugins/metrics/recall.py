"""`recall@k`: how many of the relevant are among the first k."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from metarec import hookimpl
from metarec.evaluation import Metric, RankingMetric, Scored


class Recall(RankingMetric):
    """Relevant partners among the first k, over all relevant ones of the query. Gain: 1 if relevant.

    Ties: a relevant partner counts with its chance of being among the first k in random order of equal scores
    (McSherry & Najork 2008). Tasks without a relevant query partner are left out.

    Parameters
    ----------
    k : int, default 5
        Length of the list.
    """

    name = "recall"

    def score(self, scored: Scored) -> Tensor:
        """float64 [T]: each task's expected recall."""
        return scored.task_sum(scored.relevant * scored.chance_within(self.k)) / scored.relevant_counts


@hookimpl
def register_metrics(register: Callable[[type[Metric]], None]) -> None:
    """Register `Recall`."""
    register(Recall)

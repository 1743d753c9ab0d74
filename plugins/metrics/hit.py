"""`hit@k`: whether anything relevant is among the first k."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from metarec import hookimpl
from metarec.evaluation import Metric, RankingMetric, Scored, log_binomial


class Hit(RankingMetric):
    """1 if a relevant partner is among the first k, else 0. Gain: 1 if relevant.

    Ties: the chance of it in random order of equal scores. Of n partners with one score, r of them relevant,
    m that are among the first k hold no relevant one with chance ``C(n − m, r) / C(n, r)``; the groups are
    independent. Tasks without a relevant query partner are left out.

    Parameters
    ----------
    k : int, default 5
        Length of the list.
    """

    name = "hit"

    def score(self, scored: Scored) -> Tensor:
        """float64 [T]: each task's chance of a hit."""
        groups = scored.relevant_groups(self.k)
        miss = log_binomial(groups.size - groups.within, groups.relevant) - log_binomial(
            groups.size, groups.relevant
        )
        chance = 1 - miss.sum(dim=1).exp()
        return chance.where(scored.relevant_counts > 0, float("nan"))


@hookimpl
def register_metrics(register: Callable[[type[Metric]], None]) -> None:
    """Register `Hit`."""
    register(Hit)

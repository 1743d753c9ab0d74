"""`ndcg_linear@k` and `ndcg_exp@k`: how well the first k are put in order."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from metarec import hookimpl
from metarec.evaluation import Metric, RankingMetric, Scored


class _NormalizedDiscountedCumulativeGain(RankingMetric):
    @abstractmethod
    def gain(self, rating: Tensor) -> Tensor:
        """The gain of a rating, elementwise."""

    def score(self, scored: Scored) -> Tensor:
        """float64 [T]: each task's expected nDCG."""
        gain = self.gain(scored.rating.clamp(min=0))
        position = torch.arange(1, self.k + 1, dtype=torch.float64, device=gain.device)
        discount = 1 / torch.log2(position + 1)
        ideal = torch.nn.functional.pad(discount, (0, 1))[scored.ideal_position.clamp(max=self.k)]
        best = scored.task_sum(gain * ideal).where(scored.relevant_counts > 0, float("nan"))
        return scored.task_sum(gain * scored.mean_over_places(discount)) / best


class LinearNDCG(_NormalizedDiscountedCumulativeGain):
    """Discounted cumulative gain of the first k over that of the best order. Gain: the rating, ``g = r``.

    The sum is ``Σ_p≤k g_p / log₂(p + 1)``. A partner without a rating has gain 0, as has one with a negative
    rating. Ties: the expectation over random order of equal scores, in which each member of a group has the
    mean discount of the group's places (McSherry & Najork 2008). Tasks without a relevant query partner are
    left out.

    Parameters
    ----------
    k : int, default 5
        Length of the list.
    """

    name = "ndcg_linear"

    def gain(self, rating: Tensor) -> Tensor:
        """r."""
        return rating


class ExponentialNDCG(_NormalizedDiscountedCumulativeGain):
    """Discounted cumulative gain of the first k over that of the best order. Gain: ``g = 2^r − 1``.

    The sum is ``Σ_p≤k g_p / log₂(p + 1)`` (Burges et al. 2005). A partner without a rating has gain 0, as has
    one with a negative rating. Ties: the expectation over random order of equal scores, in which each member
    of a group has the mean discount of the group's places (McSherry & Najork 2008). Tasks without a relevant
    query partner are left out.

    Parameters
    ----------
    k : int, default 5
        Length of the list.
    """

    name = "ndcg_exp"

    def gain(self, rating: Tensor) -> Tensor:
        """2^r − 1."""
        return torch.exp2(rating) - 1


@hookimpl
def register_metrics(register: Callable[[type[Metric]], None]) -> None:
    """Register `LinearNDCG` and `ExponentialNDCG`."""
    register(LinearNDCG)
    register(ExponentialNDCG)

"""How far predictive distributions can be trusted: `interval_coverage`, `nll`, `crps`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from metarec import Range, hookimpl
from metarec.evaluation import CalibrationMetric, Metric, Scored


class IntervalCoverage(CalibrationMetric):
    """Share of ratings within the central predictive interval, whose level is the target.

    A rating is within it where ``|r − m| ≤ z σ``. ``interval_coverage@90`` is right at 0.90: less is
    overconfident, more is timid. So neither way is better, and there is no gain. Pooled over query pairs.

    Parameters
    ----------
    percent : int, default 90
        Level of the interval.
    """

    name = "interval_coverage"
    higher_is_better = None
    against_floors = False
    at = "percent"
    default_at = (50, 80, 90, 95)

    def __init__(self, *, percent: Annotated[int, Range(1, 99)] = 90) -> None:
        self.percent = percent

    def score(self, scored: Scored) -> Tensor:
        """float64 [T]: each task's share."""
        assert scored.variance is not None
        z = math.sqrt(2) * float(torch.tensor(self.percent / 100, dtype=torch.float64).erfinv())
        return scored.task_mean((scored.rating - scored.mean).abs() <= z * scored.variance.sqrt())


class NegativeLogLikelihood(CalibrationMetric):
    """Negative log-likelihood of the ratings under the predictive Gaussian, in nats per rating.

    ``mean ½ (log 2πσ² + (r − m)²/σ²)`` with the algorithm's mean m and variance σ², pooled over query pairs.
    """

    name = "nll"

    def score(self, scored: Scored) -> Tensor:
        """float64 [T]: each task's value."""
        assert scored.variance is not None
        error = (scored.rating - scored.mean).square() / scored.variance
        return scored.task_mean(0.5 * (torch.log(2 * math.pi * scored.variance) + error))


class ContinuousRankedProbabilityScore(CalibrationMetric):
    """Distance between the predictive distribution and the rating, in units of the rating.

    ``mean ∫ (F(x) − 1[r ≤ x])² dx``, F the Gaussian with the algorithm's mean and variance, pooled over query
    pairs. In closed form ``σ (z (2Φ(z) − 1) + 2φ(z) − 1/√π)`` with ``z = (r − m)/σ`` (Gneiting & Raftery
    2007, equation 21, with the sign turned so that lower is better). Of a point prediction it is the absolute
    error.
    """

    name = "crps"

    def score(self, scored: Scored) -> Tensor:
        """float64 [T]: each task's value."""
        assert scored.variance is not None
        deviation = scored.variance.sqrt()
        z = (scored.rating - scored.mean) / deviation
        density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
        within = torch.erf(z / math.sqrt(2))  # 2Φ(z) − 1
        return scored.task_mean(deviation * (z * within + 2 * density - 1 / math.sqrt(math.pi)))


@hookimpl
def register_metrics(register: Callable[[type[Metric]], None]) -> None:
    """Register `IntervalCoverage`, `NegativeLogLikelihood` and `ContinuousRankedProbabilityScore`."""
    register(IntervalCoverage)
    register(NegativeLogLikelihood)
    register(ContinuousRankedProbabilityScore)

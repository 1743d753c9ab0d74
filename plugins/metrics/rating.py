"""Errors of predicted ratings: `mae`, `mse`, `rmse` of the clipped mean, and `mae_median`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metarec import hookimpl
from metarec.evaluation import Metric, RatingMetric, Scored


class MeanAbsoluteError(RatingMetric):
    """Mean absolute error of the predictive mean, in units of the rating.

    ``mean |r − m|``, m the predictive mean clipped to the scale, pooled over query pairs. For comparison with
    papers: the mean does not minimise it, the median does (see `mae_median`).
    """

    name = "mae"

    def score(self, scored: Scored) -> Tensor:
        """float64 [T]: each task's error."""
        return scored.task_mean((scored.rating - scored.clipped).abs())


class MedianAbsoluteError(RatingMetric):
    """Mean absolute error of the predictive median, in units of the rating.

    ``mean |r − q|``, q the median of the predictive distribution, pooled over query pairs. The distribution
    is Gaussian and its outcomes are the scale's, so the median is the mean, clipped, and rounded to the
    scale's step where it has one.
    """

    name = "mae_median"

    def score(self, scored: Scored) -> Tensor:
        """float64 [T]: each task's error."""
        median, scale = scored.clipped, scored.scale
        if scale.step is not None:
            median = scale.clip(scale.low + scale.step * torch.round((median - scale.low) / scale.step))
        return scored.task_mean((scored.rating - median).abs())


class MeanSquaredError(RatingMetric):
    """Mean squared error of the predictive mean, in squared units of the rating.

    ``mean (r − m)²``, m the predictive mean clipped to the scale, pooled over query pairs.
    """

    name = "mse"

    def score(self, scored: Scored) -> Tensor:
        """float64 [T]: each task's squared error."""
        return scored.task_mean((scored.rating - scored.clipped).square())


class RootMeanSquaredError(MeanSquaredError):
    """Root of the mean squared error of the predictive mean, in units of the rating.

    ``√(mean (r − m)²)``, m the predictive mean clipped to the scale. The mean is pooled over all query pairs
    of a cell before the root is drawn; a task's own value is its mean squared error.
    """

    name = "rmse"

    def summarise(self, mean: Tensor) -> Tensor:
        """The root of the pooled mean."""
        return mean.sqrt()


@hookimpl
def register_metrics(register: Callable[[type[Metric]], None]) -> None:
    """Register `MeanAbsoluteError`, `MedianAbsoluteError`, `MeanSquaredError` and `RootMeanSquaredError`."""
    register(MeanAbsoluteError)
    register(MedianAbsoluteError)
    register(MeanSquaredError)
    register(RootMeanSquaredError)

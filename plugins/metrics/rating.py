"""Errors of predicted ratings: `mae`, `mse`, `rmse` of the clipped mean, and `mae_median`."""

from __future__ import annotations

import torch
from torch import Tensor

from metarec import hookimpl
from metarec.evaluation import RatingMetric, Scored


class MeanAbsoluteError(RatingMetric):
    """``mean |r − m|``, m the predictive mean clipped to the scale; in units of the rating. Pooled over query pairs.

    For comparison with papers: the mean does not minimise it, the median does (see `mae_median`).
    """

    name = "mae"

    def score(self, scored: Scored) -> Tensor:
        """float64 [T]: each task's error."""
        return scored.task_mean((scored.rating - scored.clipped).abs())


class MedianAbsoluteError(RatingMetric):
    """``mean |r − q|``, q the median of the predictive distribution; in units of the rating. Pooled over query pairs.

    The distribution is Gaussian and its outcomes are the scale's, so the median is the mean, clipped, and rounded to
    the scale's step where it has one.
    """

    name = "mae_median"

    def score(self, scored: Scored) -> Tensor:
        """float64 [T]: each task's error."""
        median, scale = scored.clipped, scored.scale
        if scale.step is not None:
            median = scale.clip(scale.low + scale.step * torch.round((median - scale.low) / scale.step))
        return scored.task_mean((scored.rating - median).abs())


class MeanSquaredError(RatingMetric):
    """``mean (r − m)²``, m the predictive mean clipped to the scale; in squared units of the rating. Pooled over query pairs."""

    name = "mse"

    def score(self, scored: Scored) -> Tensor:
        """float64 [T]: each task's squared error."""
        return scored.task_mean((scored.rating - scored.clipped).square())


class RootMeanSquaredError(MeanSquaredError):
    """``√(mean (r − m)²)``, m the predictive mean clipped to the scale; in units of the rating.

    The mean is pooled over all query pairs of a cell before the root is drawn; a task's own value is its squared error.
    """

    name = "rmse"

    def summarise(self, mean: Tensor) -> Tensor:
        """The root of the pooled mean."""
        return mean.sqrt()


@hookimpl
def register_metrics(register):
    """Add the metrics of this file."""
    register(MeanAbsoluteError)
    register(MedianAbsoluteError)
    register(MeanSquaredError)
    register(RootMeanSquaredError)

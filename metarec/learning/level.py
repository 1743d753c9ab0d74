"""What the simplest algorithms share: one predicted level per task, and the variance that training leaves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metarec.learning.algorithm import Adapted, Algorithm, Prediction
from metarec.tasks import Query


@dataclass(frozen=True)
class Level(Adapted):
    """One Gaussian per task.

    Parameters
    ----------
    mean, variance : float [T]
        Of any rating of the task.
    """

    mean: Tensor
    variance: Tensor


class LevelAlgorithm(Algorithm):
    """Base of algorithms that predict the same for all of a task's partners: `adapt` returns a `Level`."""

    def predict(self, adapted: Adapted, query: Query) -> Prediction:
        """The task's level for every query partner."""
        assert isinstance(adapted, Level)
        return Prediction(adapted.mean[query.owner], adapted.variance[query.owner])


def residual_variance(residual: Tensor, *, fitted: int = 0) -> float:
    """Mean square of `residual` (float [n]), less one degree of freedom for each of `fitted` levels.

    At least 1e-6, so that a likelihood stays finite where training ratings are all alike.
    """
    freedom = residual.numel() - fitted if residual.numel() > fitted else residual.numel()
    return max(float(residual.to(torch.float64).square().sum() / freedom), 1e-6)

"""A floor: how generous the user is and how liked the item."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Self

import torch
from torch import Tensor

from metarec import Range, hookimpl
from metarec.data import Dataset, Side, partner_side
from metarec.learning import Adapted, Algorithm, Prediction, Run, fit_biases
from metarec.tasks import EntityRows, Query, Support, Tasks


@dataclass(frozen=True)
class EntityBias(Adapted):
    """The posterior of each task's bias.

    Parameters
    ----------
    mean, variance : float [T]
    side : "user" or "item"
    """

    mean: Tensor
    variance: Tensor
    side: Side


class Bias(Algorithm):
    """``μ + b_user + b_item``, both sides alike, each bias shrunk to 0 by as much as the data say.

    The model is ``r = μ + b_u + b_i + ε`` with ``b_u ~ N(0, τ²_user)``, ``b_i ~ N(0, τ²_item)``, ``ε ~ N(0, σ²)``.
    μ, the three variances and a factorised posterior of the biases are fitted by variational EM. The damping of n
    ratings is therefore not set but fitted: σ²/τ².

    A task's entity bias is the exact posterior given its support and the partners' biases, whose own variance v adds to
    the noise:

        precision = 1/τ² + Σ 1/(σ² + v_p),   mean = Σ (r − μ − b_p)/(σ² + v_p) / precision.

    A new partner was met in a rating, and those that have many ratings are met more often: its bias and v are the
    mean and variance of the training ratings' partners, not of the average partner. The prediction's variance is
    σ² + 1/precision + v.

    Parameters
    ----------
    iterations : int, default 100
        Most sweeps of EM; it ends earlier when no variance changes by more than one part in 10,000.

    References
    ----------
    Searle, Casella, McCulloch 1992, Variance components, chapter 8. Koren 2010, Factor in the neighbors, section 2.1.
    """

    name = "bias"
    feedback = ("explicit",)
    is_floor = True

    def __init__(self, *, iterations: Annotated[int, Range(1, 10_000)] = 100) -> None:
        self.iterations = iterations

    def fit(self, train: Dataset, *, valid: Tasks | None = None, run: Run = Run()) -> Self:
        """Fit the mean, the variances and the biases of both sides."""
        found = fit_biases(train, iterations=self.iterations)
        self.mean_, self.noise_, self.prior_, self.met_ = found.mean, found.noise, found.prior, found.met
        self.bias_ = {side: value.to(run.device, run.dtype) for side, value in found.bias.items()}
        self.bias_variance_ = {
            side: value.to(run.device, run.dtype) for side, value in found.variance.items()
        }
        return self

    def adapt(self, support: Support) -> EntityBias:
        """The posterior of each task's bias."""
        bias, variance = self._partner_bias(support.side, support.partners)
        weight = 1 / (self.noise_ + variance[support.partner]).to(support.rating.dtype)
        residual = support.rating - self.mean_ - bias[support.partner]
        precision = 1 / self.prior_[support.side] + support.sum(weight)
        return EntityBias(support.sum(weight * residual) / precision, 1 / precision, support.side)

    def predict(self, adapted: Adapted, query: Query) -> Prediction:
        """The sum of the mean and both biases."""
        assert isinstance(adapted, EntityBias)
        bias, variance = self._partner_bias(adapted.side, query.partners)
        mean = self.mean_ + adapted.mean[query.owner] + bias[query.partner]
        unknown = adapted.variance[query.owner] + variance[query.partner]
        return Prediction(mean, self.noise_ + unknown, torch.full_like(mean, self.noise_))

    def _partner_bias(self, side: Side, partners: EntityRows) -> tuple[Tensor, Tensor]:
        """float [P], float [P]: mean and variance of the bias of each partner of tasks on `side`."""
        other, new = partner_side(side), partners.rows < 0
        row = partners.rows.clamp(min=0)
        met = self.met_[other]
        bias = self.bias_[other][row].masked_fill(new, met["mean"])
        return bias, self.bias_variance_[other][row].masked_fill(new, met["variance"])


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `Bias`."""
    register(Bias)

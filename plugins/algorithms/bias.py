"""A floor: how generous the user is and how liked the item."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Self

import torch
from torch import Tensor

from metarec import Range, hookimpl
from metarec.data import Dataset, Side, partner_side
from metarec.learning import Adapted, Algorithm, Prediction, Run
from metarec.tasks import EntityRows, Query, Support, Tasks

LEAST_VARIANCE = 1e-6
TOLERANCE = 1e-4


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
        components = _Components(train)
        for _ in range(self.iterations):
            if components.sweep() < TOLERANCE:
                break
        self.mean_ = components.mean
        self.noise_ = components.noise
        self.prior_ = dict(components.prior)
        self.bias_ = {side: value.to(run.device, run.dtype) for side, value in components.bias.items()}
        self.bias_variance_ = {
            side: value.to(run.device, run.dtype) for side, value in components.variance.items()
        }
        self.met_ = {side: components.met(side) for side in components.row}
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


class _Components:
    """The state of EM, in float64: `sweep` maximises the evidence lower bound in each part in turn."""

    def __init__(self, train: Dataset) -> None:
        sides: tuple[Side, ...] = ("user", "item")
        self.rating = train.rating.to(torch.float64)
        self.row = {side: train.rows(side).long() for side in sides}
        self.count = {
            side: torch.bincount(self.row[side], minlength=len(train.entities(side))).to(torch.float64)
            for side in sides
        }
        self.mean = float(self.rating.mean())
        total = max(float(self.rating.var(correction=0)), LEAST_VARIANCE)
        self.noise = 0.6 * total
        self.prior = dict.fromkeys(sides, 0.2 * total)
        self.bias = {side: torch.zeros(len(train.entities(side)), dtype=torch.float64) for side in sides}
        self.variance = {side: torch.full_like(self.bias[side], self.prior[side]) for side in sides}

    def sweep(self) -> float:
        """One pass over both sides; the greatest relative change of a variance."""
        before = [self.noise, *self.prior.values()]
        for side in self.row:
            self._update_bias(side)
        residual = self.rating - self._biases()
        self.mean = float(residual.mean())
        unknown = sum((self.count[side] * self.variance[side]).sum() for side in self.row)
        square = (residual - self.mean).square().sum() + unknown
        self.noise = max(float(square) / self.rating.numel(), LEAST_VARIANCE)
        after = [self.noise, *self.prior.values()]
        return max(abs(new / old - 1) for new, old in zip(after, before, strict=True))

    def met(self, side: Side) -> dict[str, float]:
        """Mean and variance of the bias of the entity on a side in a training rating drawn at random."""
        share = self.count[side] / self.rating.numel()
        mean = (share * self.bias[side]).sum()
        variance = (share * ((self.bias[side] - mean).square() + self.variance[side])).sum()
        return {"mean": float(mean), "variance": float(variance)}

    def _update_bias(self, side: Side) -> None:
        residual = self.rating - self.mean - self._biases(but=side)
        total = torch.bincount(self.row[side], weights=residual, minlength=self.count[side].numel())
        self.variance[side] = 1 / (1 / self.prior[side] + self.count[side] / self.noise)
        self.bias[side] = self.variance[side] * total / self.noise
        # What all have in common belongs to the mean: EM alone is slow to see it.
        shift = float(self.bias[side].mean())
        self.bias[side] -= shift
        self.mean += shift
        second_moment = float((self.bias[side].square() + self.variance[side]).mean())
        self.prior[side] = max(second_moment, LEAST_VARIANCE)

    def _biases(self, but: Side | None = None) -> Tensor:
        """float64 [n]: the sum of each rating's biases, `but` those of one side."""
        parts = [self.bias[side][self.row[side]] for side in self.row if side != but]
        return torch.stack(parts).sum(0)


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `Bias`."""
    register(Bias)

"""How generous each user is and how liked each item: biases, shrunk by as much as the data say."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metarec.data import SIDES, Dataset, Side, partner_side

LEAST_VARIANCE = 1e-6
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Biases:
    """What is known of ``r = μ + b_user + b_item + ε``.

    Parameters
    ----------
    mean : float
        μ.
    noise : float
        Variance of ε.
    prior : dict of side to float
        Variance of the side's biases.
    bias, variance : dict of side to float64 [N]
        Mean and variance of each bias given all ratings.
    met : dict of side to "mean" and "variance"
        Of the bias of the side's entity in a training rating drawn at random: of a newcomer that is met in a rating,
        for those that have many ratings are met more often.
    """

    mean: float
    noise: float
    prior: dict[Side, float]
    bias: dict[Side, Tensor]
    variance: dict[Side, Tensor]
    met: dict[Side, dict[str, float]]


def fit_biases(train: Dataset, *, iterations: int = 100) -> Biases:
    """Fit the mean, the variances and the biases of both sides by variational EM.

    Parameters
    ----------
    train : Dataset
    iterations : int
        Most sweeps; it ends earlier when no variance changes by more than one part in 10,000.
    """
    components = _Components(train)
    for _ in range(iterations):
        if components.sweep() < TOLERANCE:
            break
    met = {side: components.met(side) for side in SIDES}
    return Biases(
        components.mean, components.noise, components.prior, components.bias, components.variance, met
    )


def fit_popularity(train: Dataset) -> Biases:
    """The same for implicit feedback, in log odds: how often an entity was chosen; none is more generous than others.

    An entity that was chosen n times has the bias ``log (n + 1) / (m + 1)``, where m is the mean of n over its side.
    """
    counts = {side: torch.bincount(train.rows(side), minlength=len(train.entities(side))) for side in SIDES}
    bias = {side: ((1 + n.double()) / (1 + n.double().mean())).log() for side, n in counts.items()}
    variance = {side: torch.zeros_like(one) for side, one in bias.items()}
    met = {side: {"mean": 0.0, "variance": 0.0} for side in SIDES}
    return Biases(0.0, 1.0, dict.fromkeys(SIDES, LEAST_VARIANCE), bias, variance, met)


class Baseline(nn.Module):
    """What biases say of standardised ratings: ``r = b + b_p + N(0, σ_p²)``, the entity's b ~ N(0, τ²).

    Parameters
    ----------
    biases : Biases
    side : "user" or "item"
        The entities'.
    mean, deviation : float
        Of standardised ratings, ``(r − mean) / deviation``.

    Attributes
    ----------
    prior_deviation : float
        τ.
    """

    own: Tensor
    bias: Tensor
    unknown: Tensor

    def __init__(self, biases: Biases, side: Side, mean: float, deviation: float) -> None:
        super().__init__()
        partner = partner_side(side)
        met = biases.met[partner]
        # A new partner has the row −1: the last of the table.
        bias = torch.cat([biases.bias[partner], torch.tensor([met["mean"]]).to(biases.bias[partner])])
        unknown = torch.cat([biases.variance[partner], torch.tensor([met["variance"]]).to(bias)])
        self.register_buffer("own", biases.bias[side] / deviation, persistent=False)
        self.register_buffer("bias", bias / deviation, persistent=False)
        self.register_buffer("unknown", unknown / deviation**2, persistent=False)
        self.offset = (biases.mean - mean) / deviation
        self.noise = biases.noise / deviation**2
        self.prior_deviation = biases.prior[side] ** 0.5 / deviation

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """b_p and σ_p² of each partner, float [n] each, by their rows (int64 [n])."""
        place = rows.remainder(len(self.bias))
        bias, unknown = self.bias.index_select(0, place), self.unknown.index_select(0, place)
        return self.offset + bias, self.noise + unknown

    def without(self, rows: Tensor, entity: Tensor, rating: Tensor) -> tuple[Tensor, Tensor]:
        """The same, had the known `entity` (int64 [n]) not given its `rating` (float [n]).

        So a rating is not foretold by a bias that it has helped to fit.
        """
        expected, noise = self(rows)
        bias, unknown = expected - self.offset, noise - self.noise
        precision = 1 / unknown - 1 / self.noise
        surprise = rating - self.offset - self.own.index_select(0, entity)
        rest = (bias / unknown - surprise / self.noise) / precision
        known = rows >= 0
        return (
            torch.where(known, self.offset + rest, expected),
            torch.where(known, self.noise + 1 / precision, noise),
        )


class _Components:
    """The state of EM, in float64: `sweep` maximises the evidence lower bound in each part in turn."""

    def __init__(self, train: Dataset) -> None:
        self.rating = train.rating.to(torch.float64)
        self.row = {side: train.rows(side).long() for side in SIDES}
        self.count = {
            side: torch.bincount(self.row[side], minlength=len(train.entities(side))).to(torch.float64)
            for side in SIDES
        }
        self.mean = float(self.rating.mean())
        total = max(float(self.rating.var(correction=0)), LEAST_VARIANCE)
        self.noise = 0.6 * total
        self.prior = dict.fromkeys(SIDES, 0.2 * total)
        self.bias = {side: torch.zeros(len(train.entities(side)), dtype=torch.float64) for side in SIDES}
        self.variance = {side: torch.full_like(self.bias[side], self.prior[side]) for side in SIDES}

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

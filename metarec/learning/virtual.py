"""Virtual cold entities, for training: what somebody of the same attributes might have rated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from metarec.data import SIDES, Dataset, Features, RatingScale, Side, partner_side
from metarec.learning.content_prior import ContentPrior, fit_content_prior
from metarec.learning.factorisation import Descent, Factors, factorise, pattern, standardisation
from metarec.learning.run import Run
from metarec.ops import gaussian_posterior
from metarec.tasks import Ragged

PLAN = Descent(rank=8)


@dataclass(frozen=True)
class VirtualEntities:
    r"""A Gaussian generator of entities given their attributes, and of their ratings.

    An entity with attributes c has :math:`\theta \sim N(W c + w, \Sigma)`, and rates a known partner p

    .. math:: r = m + s (b_p + \theta^\top (1, v_p) + \epsilon), \qquad \epsilon \sim N(0, \sigma^2),

    moved to the scale's nearest end where it lies outside. Biases b and factors v are those of a factorisation with the
    dot product, σ² its mean squared error on held-out ratings, m and s the mean and deviation of all ratings; W, w and
    Σ are learnt from what the known entities' ratings say of their θ, by `fit_content_prior`.

    Parameters
    ----------
    factors : Factors
    prior : mapping of side to ContentPrior
        Of the entities of a side.
    mean, deviation : float
    scale : RatingScale
    """

    factors: Factors
    prior: dict[Side, ContentPrior]
    mean: float
    deviation: float
    scale: RatingScale

    @classmethod
    def fit(cls, train: Dataset, run: Run) -> Self:
        """Fit the factorisation, then the law of each side's θ."""
        factors = factorise(train, PLAN, "dot", run=run)
        generator = torch.Generator().manual_seed(run.seed)
        prior = {side: _prior(train, side, factors, generator).to(run.device, run.dtype) for side in SIDES}
        return cls(factors, prior, *standardisation(train), train.scale)

    def ratings(self, side: Side, features: Features, lists: Ragged, generator: torch.Generator) -> Tensor:
        """float [n]: drawn ratings of the known partners in `lists`, by an entity for each list.

        Parameters
        ----------
        side : "user" or "item"
            Of the entities.
        features : Features [T rows]
            Their attributes.
        lists : Ragged [T]
            Rows of partners.
        generator : torch.Generator
        """
        prior = self.prior[side]
        mean = prior.mean(features)
        theta = mean + _normal(mean, generator) @ torch.linalg.cholesky(prior.covariance).mT
        partners = self.factors.of(partner_side(side)).index_select(0, lists.partner)
        expected = partners[:, 0] + (theta.index_select(0, lists.owner) * pattern(partners)).sum(1)
        noise = self.factors.error**0.5 * _normal(expected, generator)
        return self.scale.clip(self.mean + self.deviation * (expected + noise))


def _prior(train: Dataset, side: Side, factors: Factors, generator: torch.Generator) -> ContentPrior:
    """The law of θ that the known entities' ratings show, the partners' factors given."""
    features = train.entities(side).features
    assert features is not None, "a split encodes both sides"
    mean, deviation = standardisation(train)
    lists = Ragged.grouped(train.rows(side).long(), len(features))
    partner = train.rows(partner_side(side)).long()[lists.partner]
    partners = factors.of(partner_side(side)).cpu().double().index_select(0, partner)
    residual = (train.rating.double()[lists.partner] - mean) / deviation - partners[:, 0]
    one = torch.eye(partners.shape[1], dtype=torch.float64)
    weight = torch.full_like(residual, 1 / max(factors.error, 1e-6))
    # What the ratings alone say is what a posterior has beside its prior, here N(0, I).
    made = gaussian_posterior(pattern(partners), residual, weight, lists.offsets, 0 * one[0], one)
    precision = made.cholesky @ made.cholesky.mT
    shift = (precision @ made.mean.unsqueeze(2)).squeeze(2)
    return fit_content_prior(features, precision - one, shift, lists.counts, one, generator)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(like.shape, generator=generator, dtype=like.dtype)
    return drawn.to(like.device, non_blocking=True)

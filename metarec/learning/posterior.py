"""Learners whose head is linear and Gaussian, so that its posterior is exact."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from metarec.data import Side
from metarec.learning.abilities import Explanation
from metarec.learning.algorithm import Adapted, Prediction
from metarec.learning.neural import EntityEmbedding, NeuralAlgorithm, Sizes, distinct
from metarec.ops import gaussian_posterior, gaussian_update
from metarec.tasks import EntityRows, Query, Ragged, Support


@dataclass(frozen=True)
class Posterior(Adapted):
    """Each task's head, θ ~ N(mean, (LLᵀ)⁻¹), for standardised ratings.

    Parameters
    ----------
    prior : float [T, r]
        Its mean before the first rating.
    mean : float [T, r]
    cholesky : float [T, r, r]
        L, lower triangular.
    side : "user" or "item"
    """

    prior: Tensor
    mean: Tensor
    cholesky: Tensor
    side: Side


class LinearHead(nn.Module):
    """What the tasks of one side share: features of their partners, prior of their heads, noise.

    Parameters
    ----------
    entity, partner : EntityEmbedding
        Of the tasks' entities, by their attributes alone, and of the partners.
    size : int
        Numbers in an embedding.
    rank : int
        Features r, the constant included.
    """

    def __init__(self, entity: EntityEmbedding, partner: EntityEmbedding, size: int, rank: int) -> None:
        super().__init__()
        self.entity, self.partner = entity, partner
        self.project = nn.Sequential(nn.Linear(size, 2 * size), nn.ReLU(), nn.Linear(2 * size, rank - 1))
        self.prior = nn.Sequential(nn.Linear(size, 2 * size), nn.ReLU(), nn.Linear(2 * size, rank))
        self.log_deviation = nn.Parameter(torch.zeros(rank))
        self.lower = nn.Parameter(torch.zeros(rank, rank))
        self.log_noise = nn.Linear(size, 1)
        self.log_noise_of_new = nn.Parameter(torch.tensor(0.0))

    def features(self, partners: EntityRows) -> tuple[Tensor, Tensor]:
        """φ, float [N, r], and the variance of the noise, float [N], of some partners."""
        vectors = self.partner(partners)
        constant = vectors.new_ones(len(partners), 1)
        new = (partners.rows < 0).to(vectors.dtype)
        log_noise = self.log_noise(vectors).squeeze(1) + new * self.log_noise_of_new
        return torch.cat([self.project(vectors), constant], 1), log_noise.exp()

    def prior_mean(self, entities: EntityRows) -> Tensor:
        """float [T, r]."""
        mean: Tensor = self.prior(self.entity(entities))
        return mean

    def prior_precision(self) -> Tensor:
        """float [r, r]: RRᵀ with R lower triangular and a positive diagonal."""
        factor = self.lower.tril(-1) + torch.diag((-self.log_deviation).exp())
        return factor @ factor.T


class PosteriorLearner(NeuralAlgorithm):
    """Base of learners with an exact Gaussian head on learnt features.

    A rating of partner p by the task's entity, standardised, is ``θᵀφ(p) + N(0, σ²(p))`` with θ ~ N(m(c), P⁻¹), where φ
    are learnt features of p (of its attributes, and of its own where it is known), and m is a network of the entity's
    attributes c. The posterior of θ given the support is exact:

        Λ = P + Σ φφᵀ/σ²,   mean = Λ⁻¹ (P m(c) + Σ φ r/σ²),   r* ~ N(φ*ᵀ mean, φ*ᵀ Λ⁻¹ φ* + σ²(p*)).

    A subclass has the options `size` and `rank` beside those of `NeuralAlgorithm`, and chooses the loss.
    """

    size: int
    rank: int

    def build(self, sizes: Sizes) -> nn.Module:
        """A linear head for each side, on shared embeddings of the attributes."""
        user = EntityEmbedding(sizes.users, sizes.user_columns, self.size)
        item = EntityEmbedding(sizes.items, sizes.item_columns, self.size)
        heads = {
            "user": LinearHead(user, item, self.size, self.rank),
            "item": LinearHead(item, user, self.size, self.rank),
        }
        return nn.ModuleDict(heads)

    @torch.no_grad()
    def adapt(self, support: Support) -> Posterior:
        """The posterior of each task's head."""
        return self.posterior(support)

    @torch.no_grad()
    def predict(self, adapted: Adapted, query: Query) -> Prediction:
        """The Gaussian of each query partner's rating."""
        mean, unknown, noise = self.predicted(_posterior(adapted), query)
        scale = self.deviation_**2
        return Prediction(self.rated(mean), scale * (unknown + noise), scale * noise)

    @torch.no_grad()
    def query_factors(self, adapted: Adapted) -> Tensor:
        """float [T, r]: the head's mean, in units of the rating."""
        factors = self.deviation_ * _posterior(adapted).mean
        factors[:, -1] += self.mean_
        return factors

    @torch.no_grad()
    def candidate_factors(self, side: Side, partners: EntityRows) -> Tensor:
        """float [P, r]: the partners' features."""
        return self.head(side).features(partners)[0]

    @torch.no_grad()
    def absorb(self, adapted: Adapted, rating: Support) -> Posterior:
        """One more rating per task, in O(r²)."""
        return self._updated(_posterior(adapted), rating, 1)

    @torch.no_grad()
    def forget(self, adapted: Adapted, rating: Support) -> Posterior:
        """One rating less per task, in O(r²)."""
        return self._updated(_posterior(adapted), rating, -1)

    @torch.no_grad()
    def explain(self, adapted: Adapted, support: Support, query: Query) -> Explanation:
        """Rating j adds ``φ*ᵀ Λ⁻¹ φ_j (r_j − φ_jᵀ m(c)) / σ_j²`` to what the prior expects."""
        posterior, head = _posterior(adapted), self.head(support.side)
        features, noise = self._features(head, support, support.partners)
        surprise = self.standardised(support.rating) - (posterior.prior[support.owner] * features).sum(1)
        push = features * (surprise / noise).unsqueeze(1)
        asked, _ = self._features(head, query, query.partners)
        pull = torch.cholesky_solve(asked.unsqueeze(2), posterior.cholesky[query.owner]).squeeze(2)
        offsets, entry = support.entries(query.owner)
        pair = torch.repeat_interleave(torch.arange(len(pull), device=pull.device), offsets.diff())
        return Explanation(
            baseline=self.rated((posterior.prior[query.owner] * asked).sum(1)),
            offsets=offsets,
            contribution=self.deviation_ * (pull[pair] * push[entry]).sum(1),
            kind="additive",
        )

    def posterior(self, support: Support) -> Posterior:
        """As `adapt`, differentiable in the network's weights."""
        head = self.head(support.side)
        prior = head.prior_mean(support.entities)
        features, noise = self._features(head, support, support.partners)
        rating, precision = self.standardised(support.rating), head.prior_precision()
        made = gaussian_posterior(features, rating, 1 / noise, support.offsets, prior, precision)
        return Posterior(prior, made.mean, made.cholesky, support.side)

    def predicted(self, posterior: Posterior, query: Query) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance of the mean and of the noise, float [n] each, of standardised ratings; differentiable."""
        features, noise = self._features(self.head(posterior.side), query, query.partners)
        mean = (posterior.mean.index_select(0, query.owner) * features).sum(1)
        half = torch.linalg.solve_triangular(
            posterior.cholesky.index_select(0, query.owner), features.unsqueeze(2), upper=False
        )
        return mean, half.square().sum((1, 2)), noise

    def head(self, side: Side) -> LinearHead:
        """What the tasks of a side share."""
        return cast(LinearHead, cast(nn.ModuleDict, self.network_)[side])

    def _features(self, head: LinearHead, lists: Ragged, partners: EntityRows) -> tuple[Tensor, Tensor]:
        """φ, float [n, r], and the variance of the noise, float [n], of each entry's partner."""
        named, place = distinct(lists.partner)
        features, noise = head.features(partners.select(named))
        return features.index_select(0, place), noise.index_select(0, place)

    def _updated(self, posterior: Posterior, rating: Support, sign: int) -> Posterior:
        features, noise = self._features(self.head(rating.side), rating, rating.partners)
        mean, cholesky = gaussian_update(
            posterior.mean, posterior.cholesky, features, self.standardised(rating.rating), sign / noise
        )
        return replace(posterior, mean=mean, cholesky=cholesky)


def _posterior(adapted: Adapted) -> Posterior:
    assert isinstance(adapted, Posterior)
    return adapted

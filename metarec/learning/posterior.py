"""Learners whose head is linear and Gaussian, so that its posterior is exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metarec.learning.abilities import Explanation
from metarec.learning.algorithm import Adapted
from metarec.learning.linear_head import AdaptedHead, LinearHeadLearner
from metarec.ops import gaussian_posterior, gaussian_update
from metarec.tasks import Query, Ragged, Support

BLOCK = 16


@dataclass(frozen=True)
class Posterior(AdaptedHead):
    """Each task's head, θ ~ N(mean, (LLᵀ)⁻¹).

    Parameters
    ----------
    mean : float [T, r]
    cholesky : float [T, r, r]
        L, lower triangular.
    """

    mean: Tensor
    cholesky: Tensor

    def mean_head(self) -> Tensor:
        return self.mean

    def unknown(self, features: Tensor, owner: Tensor) -> Tensor:
        def half(block: Tensor, task: Tensor) -> Tensor:
            cholesky = self.cholesky.index_select(0, task)
            solved: Tensor = torch.linalg.solve_triangular(cholesky, block.mT, upper=False)
            return solved.mT

        return _squared(features, owner, len(self.mean), half)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        shape, like = (*self.mean.shape, count), self.mean
        noise = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
        away: Tensor = torch.linalg.solve_triangular(self.cholesky.mT, noise, upper=True)
        return self.mean + away.movedim(2, 0)


@dataclass(frozen=True)
class GaussianHead(AdaptedHead):
    """Each task's head, θ ~ N(mean, FFᵀ).

    Parameters
    ----------
    mean : float [T, r]
    factor : float [T, r, c]
        F.
    """

    mean: Tensor
    factor: Tensor

    def mean_head(self) -> Tensor:
        return self.mean

    def unknown(self, features: Tensor, owner: Tensor) -> Tensor:
        def half(block: Tensor, task: Tensor) -> Tensor:
            return block @ self.factor.index_select(0, task)

        return _squared(features, owner, len(self.mean), half)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        shape, like = (len(self.mean), self.factor.shape[2], count), self.mean
        noise = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
        return self.mean + (self.factor @ noise).movedim(2, 0)


def _squared(features: Tensor, owner: Tensor, tasks: int, half: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """float [n]: squared lengths of what `half` makes of features (float [n, r]) of tasks `owner` (int64 [n]).

    `half` maps blocks, float [b, BLOCK, r], of one task (int64 [b]) each: a task's factor serves BLOCK of its features
    at once. The places that are left in its last block hold 0.
    """
    lists = Ragged.grouped(owner, tasks)
    blocks = -(-lists.counts // BLOCK)
    first = (blocks.cumsum(0) - blocks) * BLOCK
    slot = torch.arange(len(owner), device=owner.device) + (first - lists.offsets[:-1])[lists.owner]
    count = int(blocks.sum())
    filled = features.new_zeros(count * BLOCK, features.shape[1])
    filled = filled.index_copy(0, slot, features.index_select(0, lists.partner))
    task = torch.repeat_interleave(torch.arange(tasks, device=owner.device), blocks, output_size=count)
    made = half(filled.view(-1, BLOCK, features.shape[1]), task)
    square = made.square().sum(2).flatten().index_select(0, slot)
    return torch.zeros_like(square).index_copy(0, lists.partner, square)


class PosteriorLearner(LinearHeadLearner):
    """Base of learners with an exact Gaussian head on learnt features: the posterior of θ given the support is exact.

    Λ = P + Σ φφᵀ/σ²,   mean = Λ⁻¹ (P m(c) + Σ φ r/σ²),   r* ~ N(φ*ᵀ mean, φ*ᵀ Λ⁻¹ φ* + σ²(p*)).
    """

    @torch.no_grad()
    def adapt(self, support: Support) -> Posterior:
        """The posterior of each task's head."""
        return self.posterior(support)

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
        posterior, side = _posterior(adapted), support.side
        features, noise = self.features(side, support, support.partners)
        surprise = self.standardised(support.rating) - (posterior.prior[support.owner] * features).sum(1)
        push = features * (surprise / noise).unsqueeze(1)
        asked, _ = self.features(side, query, query.partners)
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
        features, noise = self.features(support.side, support, support.partners)
        rating, precision = self.standardised(support.rating), head.prior_precision()
        made = gaussian_posterior(features, rating, 1 / noise, support.offsets, prior, precision)
        return Posterior(prior, support.side, made.mean, made.cholesky)

    def _updated(self, posterior: Posterior, rating: Support, sign: int) -> Posterior:
        features, noise = self.features(rating.side, rating, rating.partners)
        mean, cholesky = gaussian_update(
            posterior.mean, posterior.cholesky, features, self.standardised(rating.rating), sign / noise
        )
        return replace(posterior, mean=mean, cholesky=cholesky)


def _posterior(adapted: Adapted) -> Posterior:
    assert isinstance(adapted, Posterior)
    return adapted

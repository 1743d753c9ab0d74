"""Learners whose head is linear in learnt features: the features, the prior of the heads and the noise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, gaussian_nll_loss

from metarec.data import Side
from metarec.learning.abilities import Explanation, leave_one_out
from metarec.learning.algorithm import Adapted, Prediction
from metarec.learning.biases import Baseline
from metarec.learning.embedding import EntityEmbedding
from metarec.learning.likelihood import Likelihood
from metarec.learning.neural import NeuralAlgorithm, Perceptron, Sizes, distinct, silent
from metarec.options import Range
from metarec.tasks import EntityRows, Query, Ragged, Support, Tasks

LEARNT_DEVIATION = 0.5
BIAS_DEVIATION = 0.2
"""Deviations that the weights of learnt features, and of the partner's bias, start with; the constant's has no less."""


@dataclass(frozen=True)
class AdaptedHead(Adapted, ABC):
    """What is known of each task's head θ, for standardised ratings.

    Parameters
    ----------
    prior : float [T, r]
        Its mean before the first rating.
    side : "user" or "item"
    """

    prior: Tensor
    side: Side

    @abstractmethod
    def mean_head(self) -> Tensor:
        """float [T, r]: the mean of θ."""

    @abstractmethod
    def unknown(self, features: Tensor, owner: Tensor) -> Tensor:
        """float [n]: variance of ``θᵀφ``, for features φ (float [n, r]) of tasks `owner` (int64 [n])."""

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """float [count, T, r]: θ drawn anew, independently."""


class LinearHead(nn.Module, ABC):
    """What the tasks of one side share: features of their partners, prior of their heads, noise.

    A subclass says what the features are.

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
        self.prior = Perceptron(size, 2 * size, rank)
        self.log_deviation = nn.Parameter(torch.zeros(rank))
        self.lower = nn.Parameter(torch.zeros(rank, rank))
        self.log_noise = nn.Linear(size, 1)
        self.log_noise_of_new = nn.Parameter(torch.tensor(0.0))

    @abstractmethod
    def features(self, partners: EntityRows) -> tuple[Tensor, Tensor]:
        """φ, float [N, r], and the variance of the noise, float [N], of some partners."""

    def prior_mean(self, entities: EntityRows) -> Tensor:
        """float [T, r]."""
        mean: Tensor = self.prior(self.entity(entities))
        return mean

    def prior_factor(self) -> Tensor:
        """R, float [r, r]: lower triangular with a positive diagonal."""
        return self.lower.tril(-1) + torch.diag((-self.log_deviation).exp())

    def prior_precision(self) -> Tensor:
        """float [r, r]: RRᵀ."""
        factor = self.prior_factor()
        return factor @ factor.T

    def whitened(self, features: Tensor) -> Tensor:
        """R⁻¹φ, float [n, r], whose product with ``z = Rᵀ(θ − m)`` is ``φᵀ(θ − m)``."""
        white: Tensor = torch.linalg.solve_triangular(self.prior_factor(), features.mT, upper=False).mT
        return white

    def away(self, points: Tensor) -> Tensor:
        """``θ − m = R⁻ᵀz``, float [..., r], of some z."""
        back: Tensor = torch.linalg.solve_triangular(self.prior_factor(), points, upper=False, left=False)
        return back


class BiasHead(LinearHead):
    """A linear head that starts at the baseline, φ = (learnt features, bias of the partner, 1).

    The prior mean of the bias's weight starts at 1, that of the others at 0; the constant's is the entity's bias.

    Parameters
    ----------
    entity, partner, size, rank
        As `LinearHead`'s.
    baseline : Baseline
    """

    start: Tensor

    def __init__(
        self, entity: EntityEmbedding, partner: EntityEmbedding, size: int, rank: int, baseline: Baseline
    ) -> None:
        super().__init__(entity, partner, size, rank)
        self.baseline = baseline
        self.project = Perceptron(size + 1, 2 * size, rank - 2)
        self.register_buffer("start", torch.eye(rank)[-2], persistent=False)
        deviation = [LEARNT_DEVIATION] * (rank - 2) + [
            BIAS_DEVIATION,
            max(BIAS_DEVIATION, baseline.prior_deviation),
        ]
        with torch.no_grad():
            self.log_deviation.copy_(torch.tensor(deviation).log())
        silent(self.prior.last)
        silent(self.log_noise)

    def features(self, partners: EntityRows) -> tuple[Tensor, Tensor]:
        vectors = self.partner(partners)
        new = (partners.rows < 0).to(vectors.dtype).unsqueeze(1)
        bias, noise = self.baseline(partners.rows)
        learnt = self.project(torch.cat([vectors, new], 1))
        louder = (self.log_noise(vectors) + new * self.log_noise_of_new).squeeze(1)
        return torch.cat([learnt, bias.unsqueeze(1), torch.ones_like(new)], 1), noise * louder.exp()

    def prior_mean(self, entities: EntityRows) -> Tensor:
        return self.start + super().prior_mean(entities)


class LinearHeadLearner(NeuralAlgorithm):
    """Base of learners whose head is linear in learnt features, with a Gaussian prior.

    A rating of partner p by the task's entity, standardised, is ``θᵀφ(p) + N(0, σ²(p))`` with θ ~ N(m(c), P⁻¹), where φ
    are features of p, learnt from its attributes, and from its own ratings where it is known, and m is a network of the
    entity's attributes c. By default two of them are p's bias and a constant (`BiasHead`).

    A subclass chooses the loss, and says what becomes of θ given a support.

    Parameters
    ----------
    size : int, default 32
        Numbers in an embedding of a user or an item.
    rank : int, default 16
        Features, the partner's bias and the constant included.
    """

    def __init__(
        self,
        *,
        size: Annotated[int, Range(1, 4096)] = 32,
        rank: Annotated[int, Range(3, 256)] = 16,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.size = size
        self.rank = rank

    def build(self, sizes: Sizes) -> nn.Module:
        """A linear head for each side, on shared embeddings of the attributes."""
        user = EntityEmbedding(sizes.users, sizes.user_columns, self.size)
        item = EntityEmbedding(sizes.items, sizes.item_columns, self.size)
        heads = {
            "user": BiasHead(user, item, self.size, self.rank, self.baseline("user")),
            "item": BiasHead(item, user, self.size, self.rank, self.baseline("item")),
        }
        return nn.ModuleDict(heads)

    @torch.no_grad()
    def predict(self, adapted: Adapted, query: Query) -> Prediction:
        """Mean and variance of each query partner's rating; for implicit feedback the log odds of a choice."""
        mean, unknown, noise = self.predicted(_head(adapted), query)
        if self.implicit_:
            return Prediction(mean)
        scale = self.deviation_**2
        return Prediction(self.rated(mean), scale * (unknown + noise), scale * noise)

    @torch.no_grad()
    def draw(self, adapted: Adapted, query: Query, count: int, *, generator: torch.Generator) -> Tensor:
        """float [count, n]: ``φᵀθ`` in units of the rating, by `count` draws of each task's θ."""
        head = _head(adapted)
        features, _ = self.features(head.side, query, query.partners)
        return self.rated((head.draw(count, generator)[:, query.owner] * features).sum(2))

    @torch.no_grad()
    def query_factors(self, adapted: Adapted) -> Tensor:
        """float [T, r]: the head's mean, in units of the rating."""
        factors = self.deviation_ * _head(adapted).mean_head()
        factors[:, -1] += self.mean_
        return factors

    @torch.no_grad()
    def candidate_factors(self, side: Side, partners: EntityRows) -> Tensor:
        """float [P, r]: the partners' features."""
        return self.head(side).features(partners)[0]

    def explain(self, adapted: Adapted, support: Support, query: Query) -> Explanation:
        """The mean less what the rest of the support makes of it."""
        return leave_one_out(self, adapted, support, query)

    def loss_of(self, head: AdaptedHead, tasks: Tasks) -> Tensor:
        """Mean negative log density of the query's standardised ratings under `head`; or cross-entropy of choices."""
        mean, unknown, noise = self.predicted(head, tasks.query)
        target = self.standardised(tasks.rating)
        if self.implicit_:
            return binary_cross_entropy_with_logits(mean, target)
        return gaussian_nll_loss(mean, target, unknown + noise, full=True)

    def predicted(self, head: AdaptedHead, query: Query) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance of the mean and of the noise, float [n] each, of standardised ratings; differentiable."""
        features, noise = self.features(head.side, query, query.partners)
        mean = (head.mean_head().index_select(0, query.owner) * features).sum(1)
        return mean, head.unknown(features, query.owner), noise

    def likelihood(self, support: Support) -> Likelihood:
        """That of each task's support; differentiable."""
        return Likelihood.of(*self.observed(support), support.offsets)

    def observed(self, support: Support) -> tuple[Tensor, Tensor, Tensor]:
        """``R⁻¹φ``, float [n, r], ``r − φᵀm`` and the variance of the noise, float [n], of each support rating."""
        head = self.head(support.side)
        prior = head.prior_mean(support.entities).index_select(0, support.owner)
        features, noise = self.features(support.side, support, support.partners)
        surprise = self.standardised(support.rating) - (prior * features).sum(1)
        return head.whitened(features), surprise, noise

    def head(self, side: Side) -> LinearHead:
        """What the tasks of a side share."""
        return cast(LinearHead, cast(nn.ModuleDict, self.network_)[side])

    def features(self, side: Side, lists: Ragged, partners: EntityRows) -> tuple[Tensor, Tensor]:
        """φ, float [n, r], and the variance of the noise, float [n], of each entry's partner."""
        named, place = distinct(lists.partner)
        features, noise = self.head(side).features(partners.select(named))
        return features.index_select(0, place), noise.index_select(0, place)


def _head(adapted: Adapted) -> AdaptedHead:
    assert isinstance(adapted, AdaptedHead)
    return adapted

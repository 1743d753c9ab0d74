"""Learners whose linear head a network makes of the support, in one pass."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from metarec.data import SIDES, Side
from metarec.learning.amortised import Tokens
from metarec.learning.likelihood import Likelihood
from metarec.learning.linear_head import LinearHeadLearner
from metarec.learning.logistic import touching
from metarec.learning.neural import Perceptron, Sizes, silent
from metarec.learning.posterior import GaussianHead
from metarec.learning.training import Training
from metarec.options import Range
from metarec.tasks import Support, Tasks

LEAST_WEIGHT = 1e-3
"""Of a choice that is as good as certain: what is divided by it stays finite."""


class Told(NamedTuple):
    """What a support tells of its task's head z, in units of the prior.

    Parameters
    ----------
    likelihood : Likelihood
    mean : float [T, r]
    precision : float [T, r]
    pooled : float [T, hidden]
        The mean of its ratings' tokens, 0 where there is none.
    """

    likelihood: Likelihood
    mean: Tensor
    precision: Tensor
    pooled: Tensor


class HeadReader(nn.Module):
    """What reads the supports of one side: tokens of their ratings, and what the mean token adds.

    Parameters
    ----------
    rank, hidden : int
    """

    def __init__(self, rank: int, hidden: int) -> None:
        super().__init__()
        self.tokens = Tokens(rank, hidden, hidden)
        self.added = Perceptron(hidden, hidden, 2 * rank)
        silent(self.added.last)


class AmortisedHeadLearner(LinearHeadLearner):
    """Base of learners that read a Gaussian over a task's head of its support, in one pass.

    With z the head in units of its prior, ``x = R⁻¹φ/σ`` and ``y = (r − φᵀm)/σ`` of each of n ratings, sums over the
    support give where a mean field stands after its best first step from the prior (`Likelihood.mean_field`):

        μ₀ = ρ Σ y x / p₀,   p₀ = 1 + Σ x²,   q₀(z) = N(μ₀, diag(1/p₀)).

    What that leaves of each rating, ``y − xᵀμ₀``, goes with its x into a token, and a network of the mean token says
    what is to be added, v to the mean, and how much of the precision is to be believed, w:

        p = 1 + (p₀ − 1) exp(w),   μ = μ₀ + (1 − 1/p) v,

    elementwise; both begin at 0. No rating leaves the prior. A variant says what Gaussian follows of it (`read`). All
    weights minimise the negative log density of the query, which is exact: ``N(φᵀE θ, φᵀ Cov θ φ + σ²)``.

    Where feedback is implicit φᵀθ is the log odds of a choice c, 0 or 1. With the chance p that the prior gives it, the
    parabola that touches the log likelihood there is that of a rating ``φᵀm + (c − p) / w`` with a variance of 1/w,
    ``w = p (1 − p)``; all weights minimise the cross-entropy of choices and partners drawn.

    Parameters
    ----------
    hidden : int, default 64
        Units in a hidden layer, and numbers in a token.
    training : Training
        How the weights are trained, by default for 10 epochs with "adamw", a `learning_rate` of 0.01 and an `l2` of
        0.1.
    """

    def __init__(
        self,
        *,
        hidden: Annotated[int, Range(1, 4096)] = 64,
        training: Training = Training(epochs=10, optimizer="adamw", learning_rate=0.01, l2=0.1),
        **options: Any,
    ) -> None:
        super().__init__(training=training, **options)
        self.hidden = hidden

    def build(self, sizes: Sizes) -> nn.Module:
        """The heads, and what reads their supports."""
        network = cast(nn.ModuleDict, super().build(sizes))
        for side in SIDES:
            network[side].add_module("reader", self.reader())
        return network

    def reader(self) -> HeadReader:
        """What reads the supports of one side, with fresh weights."""
        return HeadReader(self.rank, self.hidden)

    @abstractmethod
    def read(self, reader: HeadReader, told: Told) -> tuple[Tensor, Tensor]:
        """Mean of z, float [T, r], and a root of its covariance, float [T, r, c]."""

    @torch.no_grad()
    def adapt(self, support: Support) -> GaussianHead:
        """The Gaussian of each task's head."""
        return self.posterior(support)

    def loss(self, tasks: Tasks) -> Tensor:
        """Mean negative log density of the standardised query ratings."""
        return self.loss_of(self.posterior(tasks.support), tasks)

    def posterior(self, support: Support) -> GaussianHead:
        """As `adapt`, differentiable in the network's weights."""
        head, reader = self.head(support.side), self.side_reader(support.side)
        mean, root = self.read(reader, self.told(support))
        prior = head.prior_mean(support.entities)
        return GaussianHead(prior, support.side, prior + head.away(mean), head.away(root.mT).mT)

    def told(self, support: Support) -> Told:
        """What each support tells, by its sums and by the network."""
        features, surprise, noise = self.observed(support)
        likelihood = Likelihood.of(features, surprise, noise, support.offsets)
        mean, variance = likelihood.mean_field(1)
        left = surprise - (mean.index_select(0, support.owner) * features).sum(1)
        deviation, reader = noise.sqrt(), self.side_reader(support.side)
        tokens = reader.tokens(features / deviation.unsqueeze(1), left / deviation)
        pooled = support.sum(tokens) / support.counts.clamp(min=1).to(tokens.dtype).unsqueeze(1)
        value, weight = reader.added(pooled).chunk(2, 1)
        precision = 1 + (1 / variance - 1) * weight.exp()
        return Told(likelihood, mean + (1 - 1 / precision) * value, precision, pooled)

    def observed(self, support: Support) -> tuple[Tensor, Tensor, Tensor]:
        """As `LinearHeadLearner.observed`; of a choice, what touches its log likelihood at the prior."""
        features, surprise, noise = super().observed(support)
        if not self.implicit_:
            return features, surprise, noise
        choice = self.standardised(support.rating)
        surprise, weight = touching(choice - surprise, choice, LEAST_WEIGHT)
        return features, surprise, 1 / weight

    def side_reader(self, side: Side) -> HeadReader:
        """What reads the supports of a side."""
        return cast(HeadReader, self.head(side).reader)

"""Learners that answer by draws of each task's head: their weights, their training, and whether to trust them."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from metarec.data import Dataset, Side
from metarec.learning.algorithm import Adapted
from metarec.learning.likelihood import Likelihood
from metarec.learning.linear_head import AdaptedHead, LinearHeadLearner
from metarec.learning.neural import Sizes
from metarec.learning.run import Run
from metarec.learning.training import TrainingWarning
from metarec.options import Range
from metarec.tasks import Support, Tasks, TaskSampler


@dataclass(frozen=True)
class Draws(Adapted):
    """Heads drawn for each task, in units of the prior, and how much each counts.

    Parameters
    ----------
    points : float [T, s, r]
    log_weight : float [T, s]
        Logs of weights that sum to 1.
    figures : float [T, f]
        What the learner says of them; the first is 1 where they are not to be trusted.
    """

    points: Tensor
    log_weight: Tensor
    figures: Tensor


@dataclass(frozen=True)
class Sample(AdaptedHead):
    """Each task's head as weighted draws.

    Parameters
    ----------
    count : int64 [T]
        Ratings in the support.
    likelihood : Likelihood
        Of the support: all that a further rating needs to know of the ones before it.
    draws : Draws
    heads : float [T, s, r]
        θ of each draw.
    """

    count: Tensor
    likelihood: Likelihood
    draws: Draws
    heads: Tensor

    @property
    def weight(self) -> Tensor:
        """float [T, s]: sums to 1."""
        return self.draws.log_weight.exp()

    def mean_head(self) -> Tensor:
        return (self.weight.unsqueeze(1) @ self.heads).squeeze(1)

    def unknown(self, features: Tensor, owner: Tensor) -> Tensor:
        away = self.heads - self.mean_head().unsqueeze(1)
        covariance = away.mT @ (self.weight.unsqueeze(2) * away)
        along = (features.unsqueeze(1) @ covariance.index_select(0, owner)).squeeze(1)
        return (along * features).sum(1).clamp(min=0)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        chosen = torch.multinomial(self.weight, count, replacement=True, generator=generator)
        return self.heads.gather(1, chosen.unsqueeze(2).expand(-1, -1, self.heads.shape[2])).movedim(1, 0)


class SamplingLearner(LinearHeadLearner):
    """Base of learners that answer by draws of the head: ``p(r*|S) ≈ Σ_s w_s N(r*; φ*ᵀθ_s, σ²(p*))``.

    A subclass says how a task's draws come about (`drawn`). What it draws hangs on the support's likelihood and on
    random numbers that `fit` leaves, nothing else: so a task has the same answer each time, alone or among others, and
    a rating that is absorbed or forgotten gives what adapting to the rest would.

    Features, prior and noise are trained by the gradient of the log of a mean over draws θ_s of the prior, as an
    importance-weighted bound: for a query rating r* the loss is ``−log Σ_s w_s p(r*|θ_s)`` with w_s ∝ p(S|θ_s), an
    estimate of its negative log density that nears it as the draws get more.

    Attributes
    ----------
    figures : tuple of str
        What `Draws.figures` holds.

    Parameters
    ----------
    draws : int, default 512
        Draws s of a head.

    References
    ----------
    Burda, Grosse, Salakhutdinov 2016. Importance weighted autoencoders, section 3.
    """

    figures: ClassVar[tuple[str, ...]] = ("untrusted",)

    def __init__(
        self, *, draws: Annotated[int, Range(16, 1_000_000, log=True)] = 512, **options: Any
    ) -> None:
        super().__init__(**options)
        self.draws = draws

    @abstractmethod
    def drawn(self, likelihood: Likelihood, count: Tensor) -> Draws:
        """Draws of the heads whose supports have this likelihood and so many ratings (int64 [T])."""

    def build(self, sizes: Sizes) -> nn.Module:
        """The heads, and draws of the prior in its own units: the same ones in training and ever after."""
        network = super().build(sizes)
        network.register_buffer("points", torch.randn(self.draws, self.rank))
        return network

    def fit(self, train: Dataset, *, valid: Tasks | None = None, run: Run = Run()) -> Self:
        """Train the network; warn where draws for training tasks are not to be trusted."""
        self.seed_ = run.seed
        super().fit(train, valid=valid, run=run)
        sampler = TaskSampler(train, self.sides, self.sampling, device=run.device, dtype=run.dtype)
        tasks = next(sampler.epoch(run.generator()), None)
        share = (
            0.0 if tasks is None else float(self.diagnostics(self.adapt(tasks.support))["untrusted"].mean())
        )
        if share > 0.2:
            warnings.warn(
                f"{self.name}: for {share:.0%} of some training tasks the draws are not to be trusted: "
                "take more draws or a lower rank",
                TrainingWarning,
                stacklevel=2,
            )
        return self

    @torch.no_grad()
    def adapt(self, support: Support) -> Sample:
        """Draws of each task's head."""
        return self.sample(support)

    @torch.no_grad()
    def absorb(self, adapted: Adapted, rating: Support) -> Sample:
        """One more rating per task: draws anew, which takes no longer for many ratings than for few."""
        return self._updated(adapted, rating, 1)

    @torch.no_grad()
    def forget(self, adapted: Adapted, rating: Support) -> Sample:
        """One rating less per task: draws anew."""
        return self._updated(adapted, rating, -1)

    def diagnostics(self, adapted: Adapted) -> Mapping[str, Tensor]:
        """What `figures` names, float [T] each; "untrusted" is 1 where the draws are not to be trusted."""
        columns = _sample(adapted).draws.figures.unbind(1)
        return dict(zip(self.figures, columns, strict=True))

    def loss(self, tasks: Tasks) -> Tensor:
        """Mean of ``−log Σ_s w_s p(r*|θ_s)`` over the query."""
        support, query, points = tasks.support, tasks.query, self.points
        features, noise = self.features(support.side, query, query.partners)
        prior = self.head(support.side).prior_mean(support.entities).index_select(0, query.owner)
        mean = (prior * features).sum(1, keepdim=True) + self.head(support.side).whitened(
            features
        ) @ points.mT
        away = self.standardised(tasks.rating).unsqueeze(1) - mean
        log_weight = self.likelihood(support)(points).log_softmax(1).index_select(0, query.owner)
        scaled = log_weight - away.square() / (2 * noise.unsqueeze(1))
        return ((2 * math.pi * noise).log() / 2 - scaled.logsumexp(1)).mean()

    def sample(self, support: Support) -> Sample:
        """As `adapt`, differentiable in the network's weights where the draws are."""
        prior = self.head(support.side).prior_mean(support.entities)
        return self._drawn(prior, support.side, support.counts, self.likelihood(support))

    @property
    def points(self) -> Tensor:
        """float [s, r]: draws of the prior in its own units."""
        return cast(Tensor, self.network_.points)

    def _drawn(self, prior: Tensor, side: Side, count: Tensor, likelihood: Likelihood) -> Sample:
        draws = self.drawn(likelihood, count)
        away = self.head(side).away(draws.points)
        return Sample(prior, side, count, likelihood, draws, prior.unsqueeze(1) + away)

    def _updated(self, adapted: Adapted, rating: Support, sign: int) -> Sample:
        before = _sample(adapted)
        likelihood = before.likelihood.plus(self.likelihood(rating), sign)
        return self._drawn(before.prior, before.side, before.count + sign, likelihood)


def _sample(adapted: Adapted) -> Sample:
    assert isinstance(adapted, Sample)
    return adapted

"""Importance sampling of each task's head from the learnt prior."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from metarec import Algorithm, Range, Tasks, hookimpl
from metarec.learning import Draws, Likelihood, SamplingLearner
from metarec.learning.diagnostics import effective_draws, pareto_k


class Importance(SamplingLearner):
    """Self-normalised importance sampling: heads of the learnt prior, weighted by how well each foretold the support.

        θ_s ~ N(m(c), P⁻¹),   w_s ∝ p(S|θ_s),   p(r*|S) ≈ Σ_s w_s N(r*; φ*ᵀθ_s, σ²(p*))

    Few of the prior's draws are left with any weight where a support says much: the number that counts,
    ``1/Σ w²``, falls about as ``exp`` of the information gained, with every feature and every rating. Rank 8 and
    supports of a few tens of ratings are what plain draws from the prior can serve. The figures of a report's timings
    say how it went: the effective number of draws, and the share of the tasks whose weights have so heavy a tail
    (Pareto k̂) that more draws are needed.

    Parameters
    ----------
    rank : int, default 8
        Features, the partner's bias and the constant included.
    mode : "weighted" or "seed", default "weighted"
        "seed" is a loop without weights: each draw of the prior takes one gradient step on the support's mean negative
        log density, and all count alike; the loss is the mean of the draws' own losses. It targets no posterior, and
        nothing but the step says how far to trust a support.
    step : float, default 0.5
        Size of that step, in units of the prior.

    References
    ----------
    Owen 2013, Monte Carlo theory, methods and examples, chapter 9. Vehtari, Simpson, Gelman, Yao, Gabry 2024, Pareto
    smoothed importance sampling.
    """

    name = "importance"
    feedback = ("explicit",)
    figures: ClassVar[tuple[str, ...]] = ("untrusted", "effective_draws", "log_evidence")

    def __init__(
        self,
        *,
        rank: Annotated[int, Range(3, 256)] = 8,
        mode: Literal["weighted", "seed"] = "weighted",
        step: Annotated[float, Range(1e-4, 10.0, log=True)] = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(rank=rank, **options)
        self.mode = mode
        self.step = step

    def drawn(self, likelihood: Likelihood, count: Tensor) -> Draws:
        """The prior's draws, weighted; or moved."""
        points = self.points.expand(len(count), -1, -1)
        log_likelihood = likelihood(points)
        log_evidence = log_likelihood.logsumexp(1) - math.log(self.draws)
        if self.mode == "seed":
            rate = self.step / count.clamp(min=1).to(points.dtype)
            points = points + rate.view(-1, 1, 1) * likelihood.gradient(points)
            log_likelihood = torch.zeros_like(log_likelihood)
        log_weight = log_likelihood.log_softmax(1)
        return Draws(points, log_weight, self._judged(log_weight.detach(), log_evidence.detach()))

    def _judged(self, log_weight: Tensor, log_evidence: Tensor) -> Tensor:
        """float [T, 3]: as `figures`. In the mode without weights there is nothing to judge."""
        threshold = min(1 - 1 / math.log10(self.draws), 0.7)
        untrusted = (pareto_k(log_weight) > threshold).to(log_weight.dtype)
        return torch.stack([untrusted, effective_draws(log_weight), log_evidence], 1)

    def loss(self, tasks: Tasks) -> Tensor:
        """As all that sample; without weights, the mean negative log density over draws and query."""
        if self.mode == "weighted":
            return super().loss(tasks)
        mean, unknown, noise = self.predicted(self.sample(tasks.support), tasks.query)
        square = (self.standardised(tasks.rating) - mean).square() + unknown
        return (square / noise + (2 * math.pi * noise).log()).mean() / 2


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `Importance`."""
    register(Importance)

"""Learners that find the most likely head of each task, and how its log density curves there."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from metarec.learning.linear_head import LinearHeadLearner
from metarec.learning.logistic import logistic_posterior
from metarec.learning.posterior import Posterior
from metarec.learning.training import Training
from metarec.ops import GaussianPosterior, gaussian_posterior
from metarec.tasks import Support


class ModeLearner(LinearHeadLearner):
    """Base of learners that find the mode of each task's head, and the curvature Λ of its log density there.

        θ* = argmax log p(S|θ) + log N(θ; m(c), P⁻¹)

    is exact for ratings, where the posterior is N(θ*, Λ⁻¹). Where feedback is implicit θᵀφ is the log odds of a choice,
    and Newton steps find θ*. Both are differentiable in the network's weights, whatever way has led there.

    Parameters
    ----------
    training : Training
        How the weights are trained, by default for 10 epochs.
    """

    def __init__(self, *, training: Training = Training(epochs=10), **options: Any) -> None:
        super().__init__(training=training, **options)

    def posterior(self, support: Support) -> Posterior:
        """Mode and curvature of each task's head."""
        head = self.head(support.side)
        prior = head.prior_mean(support.entities)
        made = self.conditioned(support, prior, head.prior_precision())
        return Posterior(prior, support.side, made.mean, made.cholesky)

    def conditioned(self, support: Support, mean: Tensor, precision: Tensor) -> GaussianPosterior:
        """Mode, root of the curvature, and log evidence, given the head's mean and precision before the support."""
        features, noise = self.features(support.side, support, support.partners)
        target = self.standardised(support.rating)
        if self.implicit_:
            return logistic_posterior(features, target, support.offsets, mean, precision)
        return gaussian_posterior(features, target, 1 / noise, support.offsets, mean, precision)

"""ALPaCA: Bayesian linear regression on learnt features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from metarec import Algorithm, Tasks, hookimpl
from metarec.learning import PosteriorLearner, Training


class Alpaca(PosteriorLearner):
    """Bayesian linear regression on learnt features, trained to predict the query from the support.

    The features, the prior and the noise of `PosteriorLearner` minimise the query's negative log predictive density
    ``−log N(r*; φ*ᵀ mean, φ*ᵀ Λ⁻¹ φ* + σ²)``, over tasks of every support size.

    Parameters
    ----------
    training : Training
        How the weights are trained, by default for 10 epochs with "adamw" and an `l2` of 0.1.

    References
    ----------
    Harrison, Sharma, Pavone 2018. Meta-learning priors for efficient online Bayesian regression, algorithm 1.
    """

    name = "alpaca"
    feedback = ("explicit",)

    def __init__(
        self, *, training: Training = Training(epochs=10, optimizer="adamw", l2=0.1), **options: Any
    ) -> None:
        super().__init__(training=training, **options)

    def loss(self, tasks: Tasks) -> Tensor:
        """Mean negative log density of the standardised query ratings."""
        return self.loss_of(self.posterior(tasks.support), tasks)


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `Alpaca`."""
    register(Alpaca)

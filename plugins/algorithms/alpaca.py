"""ALPaCA: Bayesian linear regression on learnt features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from torch import Tensor
from torch.nn.functional import gaussian_nll_loss

from metarec import Algorithm, Range, Tasks, hookimpl
from metarec.learning import PosteriorLearner, Training
from metarec.tasks import Sampling


class Alpaca(PosteriorLearner):
    """Bayesian linear regression on learnt features, trained to predict the query from the support.

    The features, the prior and the noise of `PosteriorLearner` minimise the query's negative log predictive density
    ``−log N(r*; φ*ᵀ mean, φ*ᵀ Λ⁻¹ φ* + σ²)``, over tasks of every support size.

    Parameters
    ----------
    size : int, default 32
        Numbers in an embedding of a user or an item.
    rank : int, default 16
        Features, the constant included.
    training : Training
        How the weights are trained, by default for 10 epochs with an `l2` of 0.001.
    sampling : Sampling
        How training tasks are drawn.

    References
    ----------
    Harrison, Sharma, Pavone 2018. Meta-learning priors for efficient online Bayesian regression, algorithm 1.
    """

    name = "alpaca"
    feedback = ("explicit",)

    def __init__(
        self,
        *,
        size: Annotated[int, Range(1, 4096)] = 32,
        rank: Annotated[int, Range(2, 256)] = 16,
        training: Training = Training(epochs=10, l2=1e-3),
        sampling: Sampling = Sampling(),
    ) -> None:
        self.size = size
        self.rank = rank
        self.training = training
        self.sampling = sampling

    def loss(self, tasks: Tasks) -> Tensor:
        """Mean negative log density of the standardised query ratings."""
        mean, unknown, noise = self.predicted(self.posterior(tasks.support), tasks.query)
        return gaussian_nll_loss(mean, self.standardised(tasks.rating), unknown + noise, full=True)


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `Alpaca`."""
    register(Alpaca)

"""ABML: a Gaussian without correlations for each task's head, a few steps from the prior."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import torch
from torch import Tensor

from metarec import Algorithm, Range, Tasks, hookimpl
from metarec.learning import Likelihood, LinearHeadLearner, Posterior, Training
from metarec.tasks import Support
from metarec.testing.oracles import mean_field
from metarec.testing.oracles.check import Check


class ABML(LinearHeadLearner):
    """A Gaussian without correlations for each task's head, a few natural-gradient steps from the learnt prior.

    With z the head in units of its prior and ``log p(S|z) = c + bᵀz − ½ zᵀAz``, q(z) = N(μ, diag(v)) starts at the
    prior, N(0, I), and climbs the evidence lower bound

        ELBO(S) = E_q log p(S|z) − KL(q ‖ N(0, I))

    along its natural gradient: with Λ = A + I one step gives the best ``vᵢ = 1/Λᵢᵢ``, and each takes

        μ ← μ + ρ v ∘ (b − Λμ)

    with the length ρ that raises the bound most. Many steps end at the exact mean; v is narrower than the posterior
    where that has correlations. Features, prior and noise maximise ELBO(S ∪ Q) of q after as many steps on both.

    Parameters
    ----------
    inner_steps : int, default 10
        Steps.
    training : Training
        How the weights are trained, by default for 10 epochs.

    References
    ----------
    Ravi, Beatson 2019. Amortized Bayesian meta-learning, section 3. Khan, Lin 2017. Conjugate-computation variational
    inference, theorem 1, for the natural gradient in place of the plain one.
    """

    name = "abml"
    feedback = ("explicit",)

    def __init__(
        self,
        *,
        inner_steps: Annotated[int, Range(1, 1000)] = 10,
        training: Training = Training(epochs=10),
        **options: Any,
    ) -> None:
        super().__init__(training=training, **options)
        self.inner_steps = inner_steps

    @torch.no_grad()
    def adapt(self, support: Support) -> Posterior:
        """The Gaussian of each task's head."""
        head = self.head(support.side)
        prior = head.prior_mean(support.entities)
        mean, variance = self.climbed(self.likelihood(support))
        cholesky = head.prior_factor() * variance.rsqrt().unsqueeze(1)
        return Posterior(prior, support.side, prior + head.away(mean), cholesky)

    def loss(self, tasks: Tasks) -> Tensor:
        """Negative evidence lower bound of support and query, per rating."""
        everything = self.likelihood(tasks.support).plus(self.likelihood(tasks.answers()))
        mean, variance = self.climbed(everything)
        around = (everything.precision.diagonal(dim1=1, dim2=2) * variance).sum(1) / 2
        divergence = (variance + mean.square() - 1 - variance.log()).sum(1) / 2
        bound = everything(mean.unsqueeze(1)).squeeze(1) - around - divergence
        return -bound.sum() / (tasks.support.rating.numel() + tasks.rating.numel())

    def climbed(self, likelihood: Likelihood) -> tuple[Tensor, Tensor]:
        """Mean and variance of z, float [T, r] each, after the steps."""
        return likelihood.mean_field(self.inner_steps)

    @classmethod
    def oracles(cls) -> Iterator[Check]:
        """Where the steps end, and the gap between the bound and the evidence."""
        return mean_field.checks(cls)


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `ABML`."""
    register(ABML)

"""PLATIPUS: gradient steps on each support from starts drawn of a learnt law."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, cast

import torch
from torch import Tensor, nn

from metarec import Algorithm, Range, Tasks, hookimpl
from metarec.data import SIDES, Side
from metarec.learning import GaussianHead, Likelihood, LinearHeadLearner, Sizes, Training
from metarec.tasks import Support
from metarec.testing.oracles import pushed
from metarec.testing.oracles.check import Check


class Rates(nn.Module):
    """What the tasks of one side learn to step by.

    All rates begin at 1: training moves them slowly, and a few steps are to come near the posterior of a head that a
    rating says less of than the prior.

    Parameters
    ----------
    rank : int
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.log_rates = nn.Parameter(torch.zeros(3))
        self.log_variance = nn.Parameter(torch.zeros(rank))

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """α, γ and γ'."""
        step, shift, shift_of_query = self.log_rates.exp().unbind()
        return step, shift, shift_of_query


class Platipus(LinearHeadLearner):
    """Gradient steps on each task's support, from starts drawn of a law that the support has shifted.

    With z the head in units of its prior, n ratings in S and ``g_S(z) = ∇log p(S|z) / (n + c)``,

        z₀ ~ N(γ g_S(0), I),   z ← z + α g_S(z), K times.

    g is linear, so a step is the affine map ``z + α(b − Az)/(n + c)``, and the law of the head after K steps is
    Gaussian: its mean is where the steps lead from γ g_S(0), its covariance MMᵀ with ``M = (I − αA/(n + c))^K``. It is
    not the posterior. In training the start is drawn of ``q = N(γ' g_Q(0), diag(v))``, which knows the query; the
    weights, with γ, γ', α and v among them, minimise

        −E_q log p(Q|z_K) + KL(q ‖ N(γ g_S(0), I))

    per rating of the query; both are in closed form.

    Parameters
    ----------
    inner_steps : int, default 10
        Steps K.
    prior_ratings : float, default 10
        What the start weighs in a support, in ratings, c.
    training : Training
        How the weights are trained, by default for 10 epochs.

    References
    ----------
    Finn, Xu, Levine 2018. Probabilistic model-agnostic meta-learning, algorithms 1 and 2.
    """

    name = "platipus"
    feedback = ("explicit",)

    def __init__(
        self,
        *,
        inner_steps: Annotated[int, Range(0, 1000)] = 10,
        prior_ratings: Annotated[float, Range(0.0, 1e6)] = 10.0,
        training: Training = Training(epochs=10),
        **options: Any,
    ) -> None:
        super().__init__(training=training, **options)
        self.inner_steps = inner_steps
        self.prior_ratings = prior_ratings

    def build(self, sizes: Sizes) -> nn.Module:
        """The heads, and what their steps go by."""
        network = super().build(sizes)
        for side in SIDES:
            cast(nn.ModuleDict, network)[side].add_module("rates", Rates(self.rank))
        return network

    @torch.no_grad()
    def adapt(self, support: Support) -> GaussianHead:
        """The law of each task's head after the steps."""
        head, likelihood = self.head(support.side), self.likelihood(support)
        prior, share = head.prior_mean(support.entities), self._share(support)
        step, shift, _ = self.rates(support.side)()
        mean, factor = self._pushed(likelihood, step * share, shift * share * likelihood.shift)
        return GaussianHead(prior, support.side, prior + head.away(mean), head.away(factor.mT).mT)

    def loss(self, tasks: Tasks) -> Tensor:
        """The bound's negative, per rating of the query."""
        support, answers, rates = tasks.support, tasks.answers(), self.rates(tasks.support.side)
        seen, asked, share = self.likelihood(support), self.likelihood(answers), self._share(support)
        (step, shift, shift_of_query), log_variance = rates(), rates.log_variance
        start = shift_of_query * self._share(answers) * asked.shift
        mean, factor = self._pushed(seen, step * share, start)
        factor = factor * (log_variance / 2).exp()
        around = (factor * (asked.precision @ factor)).sum((1, 2)) / 2
        apart = (start - shift * share * seen.shift).square()
        divergence = (log_variance.exp() + apart - 1 - log_variance).sum(1) / 2
        bound: Tensor = asked(mean.unsqueeze(1)).squeeze(1) - around - divergence
        return -bound.sum() / tasks.rating.numel()

    def rates(self, side: Side) -> Rates:
        """What the tasks of a side learn to step by."""
        return cast(Rates, self.head(side).rates)

    def _share(self, lists: Support) -> Tensor:
        """float [T, 1]: 1/(n + c); 0 where both are."""
        many = (lists.counts + self.prior_ratings).to(lists.rating.dtype)
        share: Tensor = torch.where(many > 0, 1 / many, 0.0)
        return share.unsqueeze(1)

    def _pushed(self, likelihood: Likelihood, rate: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Where steps of `rate` (float [T, 1]) lead from `start`, float [T, r], and M, float [T, r, r]."""
        shrinkage = start.new_ones(self.rank).diag() - rate.unsqueeze(2) * likelihood.precision
        mean, push = start.unsqueeze(2), (rate * likelihood.shift).unsqueeze(2)
        for _ in range(self.inner_steps):
            mean = shrinkage @ mean + push
        return mean.squeeze(2), torch.linalg.matrix_power(shrinkage, self.inner_steps)

    @classmethod
    def oracles(cls) -> Iterator[Check]:
        """Steps and the bound written out by autograd."""
        return pushed.checks(cls)


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `Platipus`."""
    register(Platipus)

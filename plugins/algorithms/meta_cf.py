"""Collaborative filtering by cosine similarity, with learnt steps for new users and items."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from metarec import Algorithm, Range, hookimpl
from metarec.data import Side
from metarec.learning import Descent, FactorHead, FactorHeadLearner, PlacedHead
from metarec.tasks import Support
from metarec.testing.oracles.check import Check, distance, fitted, tasks_of
from metarec.testing.oracles.factor_head import SMALL, descended


class MetaCF(FactorHeadLearner):
    """``r = a cos(u, v) + b + b_u + b_v``, and a new entity's vector by a few learnt gradient steps on its support.

    **Known entities** get vectors, biases, scale a and bias b by descent on the ratings, as `factorise` does, with a
    falling learning rate, a penalty, and held-out ratings to stop by.

    **New ones** of either side begin at a vector and bias of their attributes, ``θ₀ = m(c)``, learnt from the average
    of the known ones on, and take K steps with the other side fixed,

        θ ← θ − α ∘ Σ_j ∇ℓ_j(θ) / (n + c),   |u| ← √a after each,

    where ℓ is half the squared error, or the log loss of choices. The rates α, one for each number of θ, and the weight
    c of the start, in ratings, are learnt with θ₀ so that the adapted entity predicts its query best. The length of u
    stays, so that what turns it is the gradient of the cosine. Variance is that of the noise.

    Parameters
    ----------
    inner_steps : int, default 10
        Steps K.
    descent : Descent
        How the known entities get their vectors; by default of rank 64.

    References
    ----------
    Li, Zhou, Chen, Li 2017. Meta-SGD: learning to learn quickly for few-shot learning (learnt start and rates).
    """

    name = "meta-cf"
    similarity = "cosine"

    def __init__(
        self,
        *,
        inner_steps: Annotated[int, Range(0, 1000)] = 10,
        descent: Descent = Descent(rank=64, learning_rate=0.01, l2=0.02),
        **options: Any,
    ) -> None:
        super().__init__(descent=descent, **options)
        self.inner_steps = inner_steps

    def adapter(self, head: FactorHead) -> nn.Module:
        """Logarithms of the rates and of the weight of the start."""
        return nn.ParameterDict(
            {"log_rate": torch.zeros_like(head.start), "log_prior_ratings": head.start.new_tensor(2.0)}
        )

    def content(self, support: Support) -> Tensor:
        """θ₀, at the length of all factors."""
        return self._turned(super().content(support), support.side)

    def place(self, support: Support) -> PlacedHead:
        """θ after the steps."""
        learnt = cast(nn.ParameterDict, self.factor_head(support.side).adapter)
        start, slope = self.content(support), self.slope(support)
        counts = support.counts.to(start.dtype)
        rate = learnt["log_rate"].exp() / (counts + learnt["log_prior_ratings"].exp()).unsqueeze(1)
        placed = start
        for _ in range(self.inner_steps):
            placed = self._turned(placed - rate * slope(placed), support.side)
        return PlacedHead(start, support.side, placed)

    @classmethod
    def oracles(cls) -> Iterator[Check]:
        """Steps on the sphere, by autograd; and known entities that differ in direction only."""
        for feedback in cls.feedback:
            learner = fitted(cls, SMALL, implicit=feedback == "implicit")
            length = learner.factors_["user"][0, 1:].norm()
            lengths = torch.cat([table[:, 1:].norm(dim=1) for table in learner.factors_.values()])
            error = distance(lengths, length.expand_as(lengths))
            yield Check(f"known factors have one length ({feedback})", error, 1e-10)
            for scenario in ("new-user", "new-item"):
                support = tasks_of(scenario, implicit=feedback == "implicit").support
                expected = learner._written_out(support, length)
                error = distance(learner.adapt(support).mean_head(), expected)
                yield Check(f"head after the steps written out ({scenario}, {feedback})", error, 1e-10)

    def _written_out(self, support: Support, length: Tensor) -> Tensor:
        """float [T, r]: where the steps lead, from a start of any length."""
        head = self.factor_head(support.side)
        learnt = cast(nn.ParameterDict, head.adapter)
        rate, prior_ratings = (
            learnt["log_rate"].exp().detach(),
            float(learnt["log_prior_ratings"].detach().exp()),
        )

        def on_sphere(theta: Tensor) -> Tensor:
            turned = theta.clone()
            turned[1:-1] *= length / theta[1:-1].norm()
            return turned

        start = head.prior_mean(support.entities)
        return descended(self, support, start, self.inner_steps, rate, prior_ratings, on_sphere)

    def _turned(self, heads: Tensor, side: Side) -> Tensor:
        """The same with the factors at the length of all."""
        length = torch.linalg.vector_norm(self.factors_[side][0, 1:])
        return torch.cat([heads[:, :1], length * normalize(heads[:, 1:-1], dim=1), heads[:, -1:]], 1)


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `MetaCF`."""
    register(MetaCF)

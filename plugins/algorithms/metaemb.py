"""MetaEmb: attributes generate a start from which one gradient step is to lead far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, cast

import torch
from torch import Tensor, nn

from metarec import Algorithm, Range, hookimpl
from metarec.learning import FactorHeadLearner, PlacedHead
from metarec.tasks import Support, Tasks
from metarec.testing.oracles.check import Check, distance, fitted, tasks_of
from metarec.testing.oracles.factor_head import SMALL, descended, seen


class MetaEmb(FactorHeadLearner):
    """An embedding generated from attributes, learnt to be good as it is and after one gradient step.

    The generator of the content embedding ``θ₀ = m₀(c)`` is trained, the factors of the known entities fixed, on

        γ L_Q(θ₀) + (1 − γ) L_Q(θ₁),   θ₁ = θ₀ − α Σ_j ∇ℓ_j(θ₀) / n,

    where ℓ is half the squared error of a support rating, or the log loss of a choice, and L_Q the query's loss; the
    gradient goes through the step. A new entity has θ₀ without a rating and θ₁ with some; variance is the noise's.

    Beside the paper: both losses are of the query, as an implicit support has nothing that was not chosen (the paper
    takes the first loss on the support; neither has seen the ratings that it predicts); θ has a bias of its own; users
    are placed as items are; and the generator is a network that starts at the average of the known ones.

    Parameters
    ----------
    inner_rate : float, default 0.5
        α.
    cold_weight : float, default 0.1
        γ, of the loss before the step.

    References
    ----------
    Pan, Li, Ao, Tang, He 2019. Warm up cold-start advertisements: improving CTR predictions via learning to learn ID
    embeddings, algorithm 1.
    """

    name = "metaemb"

    def __init__(
        self,
        *,
        inner_rate: Annotated[float, Range(0.0, 10.0)] = 0.5,
        cold_weight: Annotated[float, Range(0.0, 1.0)] = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.inner_rate = inner_rate
        self.cold_weight = cold_weight

    def place(self, support: Support) -> PlacedHead:
        """θ₁; without a rating θ₀."""
        start = self.content(support)
        step = self.slope(support)(start) / support.counts.clamp(min=1).unsqueeze(1)
        return PlacedHead(start, support.side, start - self.inner_rate * step)

    def loss(self, tasks: Tasks) -> Tensor:
        """The query's loss before the step and after it."""
        placed = self.place(tasks.support)
        cold = PlacedHead(placed.prior, placed.side, placed.prior)
        weight = self.cold_weight
        return weight * self.loss_of(cold, tasks) + (1 - weight) * self.loss_of(placed, tasks)

    @classmethod
    def oracles(cls) -> Iterator[Check]:
        """The step by autograd, and the gradient of the loss after it in closed form for squared errors."""
        for feedback in cls.feedback:
            learner = fitted(cls, SMALL, implicit=feedback == "implicit")
            support = tasks_of("new-item", implicit=feedback == "implicit").support
            expected = descended(learner, support, learner.content(support), 1, learner.inner_rate)
            error = distance(learner.adapt(support).mean_head(), expected)
            yield Check(f"head after the step written out ({feedback})", error, 1e-10)
        learner, tasks = fitted(cls, SMALL), tasks_of("new-item")
        network = learner.factor_head("item").prior
        (found,) = torch.autograd.grad(learner.loss(tasks), cast(nn.Linear, network[-1]).bias)
        error = distance(found, learner._gradient(tasks))
        yield Check("gradient is γ g(θ₀) + (1 − γ) (I − αH) g(θ₁)", error, 1e-10)

    @torch.no_grad()
    def _gradient(self, tasks: Tasks) -> Tensor:
        """float [r]: of the loss in what is added to the start of every task; H and g are of its support and query."""
        support, query = tasks.support, tasks.query
        asked, noise = self.features(support.side, query, query.partners)
        total = torch.zeros_like(asked[0])
        for task, (features, target) in enumerate(seen(self, support)):
            start = self.content(support)[task]
            mine, count = query.owner == task, max(len(target), 1)
            step = torch.eye(len(start)).to(start) - self.inner_rate * features.T @ features / count
            end = step @ start + self.inner_rate * features.T @ target / count
            for head, weight, through in (
                (start, self.cold_weight, torch.eye(len(start)).to(start)),
                (end, 1 - self.cold_weight, step),
            ):
                error = asked[mine] @ head - self.standardised(tasks.rating[mine])
                slope = asked[mine].T @ (error / noise[mine]) / len(noise)
                total += weight * (through @ slope)
        return total


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `MetaEmb`."""
    register(MetaEmb)

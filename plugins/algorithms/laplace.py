"""Laplace: a Gaussian at the most likely head, as wide as the log density curves there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from metarec import Algorithm, Tasks, hookimpl
from metarec.learning import ModeLearner, Posterior
from metarec.tasks import Support
from metarec.testing.oracles.check import Check, distance, fitted, tasks_of
from metarec.testing.oracles.mode import SMALL, evidence_error, hessians
from metarec.testing.oracles.posterior import process_density


class Laplace(ModeLearner):
    """A Gaussian at the most likely head of each task, as wide as the log density curves there, trained by evidence.

    ``p(θ|S) ≈ N(θ*, Λ⁻¹)``; features, prior and noise maximise the evidence of a task's whole query given its support,

        log p(Q|S) ≈ log p(Q|θ₊) + log N(θ₊; θ*, Λ⁻¹) + r/2 log 2π − ½ log|Λ₊|,

    with θ₊ and Λ₊ the mode and the curvature once the query is known too. For ratings all of this is exact: what is
    predicted is what `alpaca` would with the same weights, but the query's ratings are judged together. Where feedback
    is implicit, θᵀφ is the log odds of a choice, and draws show what is unknown of them.

    References
    ----------
    MacKay 1992. Bayesian interpolation, section 2. Grant, Finn, Levine, Darrell, Griffiths 2018. Recasting
    gradient-based meta-learning as hierarchical Bayes, section 4.
    """

    name = "laplace"

    @torch.no_grad()
    def adapt(self, support: Support) -> Posterior:
        """Mode and curvature of each task's head."""
        return self.posterior(support)

    def loss(self, tasks: Tasks) -> Tensor:
        """Negative log evidence of the query given the support, per rating."""
        before = self.posterior(tasks.support)
        made = self.conditioned(tasks.answers(), before.mean, before.cholesky @ before.cholesky.mT)
        return -made.log_evidence.sum() / tasks.rating.numel()

    @classmethod
    def oracles(cls) -> Iterator[Check]:
        """Curvatures by autograd; evidence by Gaussian algebra, or where that is not exact, by quadrature."""
        for feedback in cls.feedback:
            learner = fitted(cls, SMALL, implicit=feedback == "implicit")
            support = tasks_of("new-user", implicit=learner.implicit_).support
            found = learner.adapt(support)
            error = distance(found.cholesky @ found.cholesky.mT, hessians(learner, support, found.mean))
            yield Check(f"curvature is the Hessian at the mode ({feedback})", error, 1e-9)
        learner, tasks = fitted(cls, SMALL), tasks_of("new-user")
        expected = -process_density(learner, tasks).sum() / tasks.rating.numel()
        yield Check(
            "loss is the joint density of the query", distance(learner.loss(tasks).detach(), expected), 1e-10
        )
        with warnings.catch_warnings(action="ignore"):  # two numbers leave no feature to learn
            learner = fitted(cls, {**SMALL, "rank": 2}, implicit=True)
        few, many = (evidence_error(learner, times) for times in (40, 400))
        yield Check("evidence of many choices by quadrature", many, 1e-3)
        yield Check("ten times as many leave a tenth of its error", abs(10 * many / few - 1), 0.3)


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `Laplace`."""
    register(Laplace)

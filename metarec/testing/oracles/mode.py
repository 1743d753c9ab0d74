"""A mode is where the log density written out has no slope; the way there leaves no trace in gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, MultivariateNormal, Normal

from metarec.learning import Algorithm, ModeLearner, Training
from metarec.learning.linear_head import AdaptedHead, BiasHead
from metarec.tasks import Support, Tasks
from metarec.testing.oracles.check import Check, derivative_error, distance, fitted, repeated, tasks_of

SMALL: dict[str, Any] = {"size": 4, "rank": 3, "training": Training(epochs=2)}


def checks(algorithm: type[Algorithm]) -> Iterator[Check]:
    """Hold modes to densities and slopes by autograd, and gradients to differences of the loss."""
    for feedback in algorithm.feedback:
        implicit = feedback == "implicit"
        learner = fitted(algorithm, SMALL, implicit=implicit)
        assert isinstance(learner, ModeLearner)
        for scenario in ("new-user", "new-item", "new-both"):
            tasks, where = tasks_of(scenario, implicit=implicit), f"({scenario}, {feedback})"
            yield Check(f"mode of the density written out {where}", _mode_error(learner, tasks), 1e-9)
        error = derivative_error(learner, tasks_of("new-user", implicit=implicit))
        yield Check(f"gradient is the slope of the loss ({feedback})", error, 1e-6)


def log_joint(learner: ModeLearner, support: Support, task: int) -> Callable[[Tensor], Tensor]:
    """``log p(S|θ) + log N(θ; m, P⁻¹)`` of one task, as a function of θ (float [r] or [s, r])."""
    head, mine = learner.head(support.side), support.owner == task
    with torch.no_grad():
        features, noise = (part[support.partner[mine]] for part in head.features(support.partners))
        prior = MultivariateNormal(
            head.prior_mean(support.entities)[task], precision_matrix=head.prior_precision()
        )
    rating = learner.standardised(support.rating[mine])

    def density(theta: Tensor) -> Tensor:
        output = theta @ features.T
        law = Bernoulli(logits=output) if learner.implicit_ else Normal(output, noise.sqrt())
        each: Tensor = law.log_prob(rating)  # type: ignore[no-untyped-call]
        before: Tensor = prior.log_prob(theta)
        return each.sum(-1) + before

    return density


def hessians(learner: ModeLearner, support: Support, heads: Tensor) -> Tensor:
    """float [T, r, r]: of the negative log density of each task at `heads` (float [T, r]), by autograd."""
    each = [
        torch.autograd.functional.hessian(log_joint(learner, support, task), theta)
        for task, theta in enumerate(heads)
    ]
    return -torch.stack(each)


def _mode_error(learner: ModeLearner, tasks: Tasks) -> float:
    """How far a Newton step of autograd's would go from the heads that are predicted from."""
    adapted = learner.adapt(tasks.support)
    assert isinstance(adapted, AdaptedHead)
    heads = adapted.mean_head()
    slopes = []
    for task, theta in enumerate(heads.clone().requires_grad_()):
        slopes += torch.autograd.grad(log_joint(learner, tasks.support, task)(theta), theta)
    step = torch.linalg.solve(hessians(learner, tasks.support, heads), torch.stack(slopes))
    return distance(heads + step, heads)


@torch.no_grad()
def evidence_error(learner: ModeLearner, times: int) -> float:
    """Mean distance of Laplace's evidence from that by quadrature, where each support comes so many times.

    Every second rating of a support is a choice, the others are not, and the partners of the first two are liked, the
    others not: so both numbers of θ, which are weights of the bias and of the constant, are known the better, the more
    ratings there are. The prior is wide. The quadrature is on a grid of fourteen deviations of the Gaussian at the
    mode.
    """
    support = tasks_of("new-user", implicit=True).support
    support = support.select((support.counts >= 4).nonzero().flatten()[:4]).first(4)
    entry, partners = torch.arange(support.partner.numel()), support.partner[:4]
    choices = (entry % 2).to(support.rating)
    support = repeated(replace(support, partner=partners[entry % 4], rating=choices), times)
    head = learner.head(support.side)
    assert isinstance(head, BiasHead)
    head.log_deviation.zero_()
    head.baseline.bias[support.partners.rows[partners]] = torch.tensor([1, 1, -1, -1], dtype=torch.float64)
    made = learner.conditioned(support, head.prior_mean(support.entities), head.prior_precision())
    line = torch.linspace(-7, 7, 57, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    errors = []
    for task in range(len(support)):
        away = torch.linalg.solve_triangular(made.cholesky[task].mT, grid.T, upper=True).T
        density = log_joint(learner, support, task)(made.mean[task] + away).logsumexp(0)
        cell = 2 * (line[1] - line[0]).log() - made.cholesky[task].diagonal().log().sum()
        errors.append(float((made.log_evidence[task] - density - cell).abs()))
    return sum(errors) / len(errors)

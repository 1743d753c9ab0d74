"""A newcomer among factors: what its head predicts, where it begins, and gradient steps written out by autograd."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from metarec.data import Side, partner_side
from metarec.learning import Algorithm, Descent, FactorHeadLearner, Training
from metarec.tasks import EntityRows, Ragged, Support, Tasks
from metarec.testing.oracles.check import Check, distance, fitted, tasks_of

SMALL: dict[str, Any] = {
    "size": 4,
    "inner_steps": 3,
    "descent": Descent(rank=3, epochs=5),
    "training": Training(epochs=8, learning_rate=0.03, held_out=0),
}


def checks(algorithm: type[Algorithm]) -> Iterator[Check]:
    """Hold the prediction and the loss to the factors, and what is known without a rating to the attributes."""
    for feedback in algorithm.feedback:
        implicit = feedback == "implicit"
        learner = fitted(algorithm, SMALL, implicit=implicit)
        assert isinstance(learner, FactorHeadLearner)
        for scenario in ("new-user", "new-item"):
            tasks, where = tasks_of(scenario, implicit=implicit), f"({scenario}, {feedback})"
            mean = _mean(learner, tasks)
            found = learner.predict(learner.adapt(tasks.support), tasks.query).mean
            yield Check(f"mean is the product with the known factors {where}", distance(found, mean), 1e-10)
            loss = learner.loss_of(learner.place(tasks.support), tasks).detach()
            error = distance(loss, _loss(learner, tasks, mean))
            yield Check(f"loss is that of the query under this mean {where}", error, 1e-10)
            yield Check(
                f"no rating leaves the content embedding {where}", _start_error(learner, tasks), 1e-10
            )
            yield Check(f"attributes alone make it {where}", _attribute_error(learner, tasks), 1e-10)


def seen(learner: FactorHeadLearner, support: Support) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each task of known partners its features, float [n, r], from the factors, and its standardised ratings."""
    features = _factors(learner, support.side, support, support.partners)
    for task in range(len(support)):
        mine = support.owner == task
        yield features[mine], (support.rating[mine] - learner.mean_) / learner.deviation_


def descended(
    learner: FactorHeadLearner,
    support: Support,
    start: Tensor,
    steps: int,
    rate: Tensor | float,
    prior_ratings: float = 0.0,
    after: Callable[[Tensor], Tensor] = lambda head: head,
) -> Tensor:
    """Heads after gradient steps from `start` (float [T, r]), one task at a time, by autograd.

    A step goes down the sum of half the squared errors, or of the log losses, over the number of ratings and
    `prior_ratings` together; `after` changes the head at the start and after each step.
    """
    heads = []
    for head, (features, target) in zip(start, seen(learner, support), strict=True):
        head = after(head.detach())
        for _ in range(steps):
            head.requires_grad_()
            output = features @ head
            loss = (output - target).square().sum() / 2
            if learner.implicit_:
                loss = cross_entropy(output, target, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, head)
            head = after((head - rate * gradient / (len(target) + prior_ratings or 1)).detach())
        heads.append(head)
    return torch.stack(heads)


def _factors(learner: FactorHeadLearner, side: Side, lists: Ragged, partners: EntityRows) -> Tensor:
    """float [n, r]: bias, factors and 1 of each entry's known partner."""
    rows = partners.rows[lists.partner]
    assert bool((rows >= 0).all()), "these tasks have known partners"
    known = learner.factors_[partner_side(side)][rows]
    return torch.cat([known, torch.ones_like(known[:, :1])], 1)


def _mean(learner: FactorHeadLearner, tasks: Tasks) -> Tensor:
    heads = learner.adapt(tasks.support).mean_head()
    features = _factors(learner, tasks.support.side, tasks.query, tasks.query.partners)
    mean: Tensor = learner.mean_ + learner.deviation_ * (heads[tasks.query.owner] * features).sum(1)
    return mean


@torch.no_grad()
def _loss(learner: FactorHeadLearner, tasks: Tasks, mean: Tensor) -> Tensor:
    if learner.implicit_:
        return cross_entropy(mean, tasks.rating)
    variance = learner.predict(learner.adapt(tasks.support), tasks.query).variance
    assert variance is not None
    law = torch.distributions.Normal(mean, variance.sqrt())
    density: Tensor = -law.log_prob(tasks.rating).mean() - math.log(learner.deviation_)
    return density


@torch.no_grad()
def _start_error(learner: FactorHeadLearner, tasks: Tasks) -> float:
    nothing = tasks.support.first(0)
    return distance(learner.adapt(nothing).mean_head(), learner.content(nothing))


@torch.no_grad()
def _attribute_error(learner: FactorHeadLearner, tasks: Tasks) -> float:
    """How far the content embeddings are from those of the same attributes in other places, or from being different."""
    support = tasks.support.first(0)
    found = learner.content(support)
    if float(found.std(0).max()) < 1e-3:
        return math.inf
    other = torch.arange(len(support)).roll(1)
    swapped = replace(
        support, entities=EntityRows(support.entities.rows, support.entities.features.rows(other))
    )
    return distance(learner.content(swapped), found[other])

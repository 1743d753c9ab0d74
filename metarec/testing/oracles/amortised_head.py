"""A Gaussian head that is read in one pass: the prior without ratings, narrower with them; and written out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian
from torch.distributions import Bernoulli, Distribution, Normal

from metarec.learning import Algorithm, AmortisedHeadLearner, HeadReader, Training
from metarec.tasks import Support, Tasks
from metarec.testing.oracles.check import Check, derivative_error, distance, fitted, tasks_of
from metarec.testing.oracles.pushed import log_density

SMALL: dict[str, Any] = {
    "size": 4,
    "rank": 4,
    "hidden": 8,
    "columns": 2,
    "inner_steps": 2,
    "training": Training(epochs=2),
}

Covariance = Callable[[HeadReader, Tensor, Tensor], Tensor]
"""Covariance of z, float [r, r], that a reader gives of a precision (float [r]) and a mean token (float [hidden])."""


def checks(algorithm: type[Algorithm]) -> Iterator[Check]:
    """Hold what ratings leave open to what there is before them, and the loss to a density."""
    for feedback in algorithm.feedback:
        implicit = feedback == "implicit"
        learner = fitted(algorithm, SMALL, implicit=implicit)
        assert isinstance(learner, AmortisedHeadLearner)
        for scenario in ("new-user", "new-item", "new-both"):
            yield from _narrower(learner, tasks_of(scenario, implicit=implicit), f"({scenario}, {feedback})")
        error = derivative_error(learner, tasks_of("new-user", implicit=implicit))
        yield Check(f"gradient is the slope of the loss ({feedback})", error, 1e-6)


def _narrower(learner: AmortisedHeadLearner, tasks: Tasks, where: str) -> Iterator[Check]:
    mean, unknown = _prior(learner, tasks)
    told = zip(("mean", "variance"), _told(learner, tasks, 0), (mean, unknown), strict=True)
    for name, found, expected in told:
        yield Check(f"no rating leaves the {name} of the prior {where}", distance(found, expected), 1e-10)
    wider = float((_told(learner, tasks, 100)[1] / unknown).max()) - 1
    yield Check(f"ratings leave nothing less sure {where}", wider, 1e-10)
    levels = [float(_told(learner, tasks, size)[1].mean()) for size in (0, 1, 3, 7)]
    growth = sum(after > before for before, after in pairwise(levels))
    yield Check(f"more ratings leave less open {where}", float(growth), 0.0)
    prediction = learner.predict(learner.adapt(tasks.support), tasks.query)
    if prediction.variance is None:
        law: Distribution = Bernoulli(logits=prediction.mean)
    else:
        law = Normal(prediction.mean, prediction.variance.sqrt())
    density = law.log_prob(tasks.rating).mean()
    error = distance(learner.loss(tasks).detach(), -density - math.log(learner.deviation_))
    yield Check(f"loss is the negative log density of the query {where}", error, 1e-10)


def written_out(algorithm: type[AmortisedHeadLearner], covariance: Covariance, steps: int) -> Iterator[Check]:
    """Hold predictions to the pass and its `steps` written out, one task at a time."""
    for feedback in algorithm.feedback:
        implicit = feedback == "implicit"
        learner = fitted(algorithm, SMALL, implicit=implicit)
        for scenario in ("new-user", "new-item", "new-both"):
            tasks, where = tasks_of(scenario, implicit=implicit), f"({scenario}, {feedback})"
            expected = _written_out(learner, tasks, covariance, steps)
            for name, found, value in zip(
                ("mean", "variance"), _told(learner, tasks, 100), expected, strict=True
            ):
                yield Check(f"{name}, written out {where}", distance(found, value), 1e-9)


def diagonal(reader: HeadReader, precision: Tensor, pooled: Tensor) -> Tensor:
    """Without correlations."""
    return torch.diag(1 / precision)


def low_rank(reader: HeadReader, precision: Tensor, pooled: Tensor) -> Tensor:
    """With those of a few columns, ``FFᵀ + diag(1/p)``."""
    columns: Tensor = reader.get_submodule("columns")(pooled).view(SMALL["rank"], SMALL["columns"])
    factor = torch.diag(1 - 1 / precision) @ columns / (1 + torch.linalg.matrix_norm(columns) ** 2).sqrt()
    spread: Tensor = factor @ factor.T + torch.diag(1 / precision)
    return spread


@torch.no_grad()
def _told(learner: AmortisedHeadLearner, tasks: Tasks, size: int) -> tuple[Tensor, Tensor]:
    """Mean, and variance without the noise, that `size` ratings of each support leave, standardised."""
    adapted = learner.adapt(tasks.support.first(size))
    found = learner.predict(adapted, tasks.query)
    if learner.implicit_:
        return found.mean, learner.predicted(adapted, tasks.query)[1]
    assert found.variance is not None and found.noise is not None
    return learner.standardised(found.mean), (found.variance - found.noise) / learner.deviation_**2


@torch.no_grad()
def _prior(learner: AmortisedHeadLearner, tasks: Tasks) -> tuple[Tensor, Tensor]:
    """``φᵀm`` and ``φᵀP⁻¹φ`` of each query pair."""
    head, query = learner.head(tasks.support.side), tasks.query
    features = head.features(query.partners)[0][query.partner]
    mean = (features * head.prior_mean(tasks.support.entities)[query.owner]).sum(1)
    return mean, (features @ torch.linalg.inv(head.prior_precision()) @ features.T).diagonal()


def _written_out(
    learner: AmortisedHeadLearner, tasks: Tasks, covariance: Covariance, steps: int
) -> tuple[Tensor, Tensor]:
    head, query = learner.head(tasks.support.side), tasks.query
    with torch.no_grad():
        features, prior = head.features(query.partners)[0], head.prior_mean(tasks.support.entities)
        back = torch.linalg.inv(head.prior_factor())
    means, variances = [], []
    for task in range(len(tasks)):
        mean, spread = _head(learner, tasks.support, task, covariance, steps)
        asked = features[query.partner[query.owner == task]]
        means.append(asked @ (prior[task] + back.T @ mean))
        variances.append((asked @ back.T @ spread @ back @ asked.T).diagonal())
    return torch.cat(means), torch.cat(variances)


def _head(
    learner: AmortisedHeadLearner, support: Support, task: int, covariance: Covariance, steps: int
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of one task's z: slopes and curvature by autograd, lengths by a parabola's three points."""
    density, start = _parabola(learner, support, task), torch.zeros(SMALL["rank"], dtype=torch.float64)

    def posterior(point: Tensor) -> Tensor:
        return density(point) - point.square().sum() / 2

    exact = -torch.as_tensor(hessian(posterior, start)).diagonal()
    first = _climbed(posterior, start, torch.diag(1 / exact))
    with torch.no_grad():
        reader, pooled = learner.side_reader(support.side), _pooled(learner, support, task, first)
        value, weight = reader.added(pooled).chunk(2)
        precision = 1 + (exact - 1) * weight.exp()
        mean, spread = first + (1 - 1 / precision) * value, covariance(reader, precision, pooled)
    for _ in range(steps):
        mean = _climbed(posterior, mean, spread)
    return mean, spread


def _parabola(learner: AmortisedHeadLearner, support: Support, task: int) -> Callable[[Tensor], Tensor]:
    """``log p(S|z)`` of one task to the second order in z; of ratings that is all."""
    density, start = log_density(learner, support, task), torch.zeros(SMALL["rank"], dtype=torch.float64)
    value, bend = density(start), torch.as_tensor(hessian(density, start))
    slope = torch.as_tensor(jacobian(density, start))

    def parabola(point: Tensor) -> Tensor:
        return value + slope @ point + point @ bend @ point / 2

    return parabola


def _pooled(learner: AmortisedHeadLearner, support: Support, task: int, mean: Tensor) -> Tensor:
    """The mean of one task's tokens, whose z is expected at `mean`."""
    head, reader = learner.head(support.side), learner.side_reader(support.side)
    features, noise = (
        part[support.partner[support.owner == task]] for part in head.features(support.partners)
    )
    back, prior = torch.linalg.inv(head.prior_factor()), head.prior_mean(support.entities)[task]
    rating, before = learner.standardised(support.rating[support.owner == task]), features @ prior
    left = rating - before
    if learner.implicit_:
        chance = torch.sigmoid(before)
        noise = 1 / (chance * (1 - chance))
        left = (rating - chance) * noise
    left = left - features @ back.T @ mean
    tokens = [
        reader.tokens(x[None] / s.sqrt(), y[None] / s.sqrt())[0]
        for x, y, s in zip(features @ back.T, left, noise, strict=True)
    ]
    return torch.stack(tokens).mean(0) if tokens else torch.zeros(SMALL["hidden"], dtype=torch.float64)


def _climbed(density: Callable[[Tensor], Tensor], point: Tensor, metric: Tensor) -> Tensor:
    """The highest place of a quadratic along `metric` times its slope."""
    point = point.detach().requires_grad_()
    way = metric @ torch.autograd.grad(density(point), point)[0]
    with torch.no_grad():
        if not way.any():
            return point.detach()
        behind, here, ahead = density(point - way), density(point), density(point + way)
        return point + (ahead - behind) / 2 / (2 * here - ahead - behind) * way

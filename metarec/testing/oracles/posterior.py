"""An exact Gaussian head is the Gaussian process of its features."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from metarec.learning import Algorithm, LinearHeadLearner, PosteriorLearner, Prediction, Training
from metarec.tasks import Tasks
from metarec.testing.oracles.check import Check, distance, fitted, tasks_of

SMALL = {"size": 4, "rank": 3, "training": Training(epochs=2)}


def checks(algorithm: type[Algorithm]) -> Iterator[Check]:
    """Hold it to the process with kernel ``φᵀΣφ``, and its loss to a normal density."""
    learner = fitted(algorithm, SMALL)
    assert isinstance(learner, PosteriorLearner)
    for scenario in ("new-user", "new-item", "new-both"):
        tasks = tasks_of(scenario)
        found, expected = learner.predict(learner.adapt(tasks.support), tasks.query), process(learner, tasks)
        assert found.variance is not None and found.noise is not None
        assert expected.variance is not None and expected.noise is not None
        for name, one, other in (
            ("mean", found.mean, expected.mean),
            ("variance", found.variance, expected.variance),
            ("noise", found.noise, expected.noise),
        ):
            yield Check(f"{name} of the Gaussian process ({scenario})", distance(one, other), 1e-10)
        law = torch.distributions.Normal(found.mean, found.variance.sqrt())
        density = -law.log_prob(tasks.rating).mean() - math.log(learner.deviation_)
        error = distance(learner.loss(tasks).detach(), density)
        yield Check(f"loss is the negative log density of the query ({scenario})", error, 1e-10)


@torch.no_grad()
def process(learner: LinearHeadLearner, tasks: Tasks) -> Prediction:
    """The prediction of the Gaussian process with the learner's features, prior and noise, task by task."""
    head = learner.head(tasks.support.side)
    features, noise = head.features(tasks.query.partners)
    prior, covariance = head.prior_mean(tasks.support.entities), torch.linalg.inv(head.prior_precision())
    means: list[Tensor] = []
    unknown: list[Tensor] = []
    for task in range(len(tasks)):
        seen, asked = (
            slice(*lists.offsets[task : task + 2].tolist()) for lists in (tasks.support, tasks.query)
        )
        held, wanted = tasks.support.partner[seen], tasks.query.partner[asked]
        surprise = learner.standardised(tasks.support.rating[seen]) - features[held] @ prior[task]
        kernel = features[held] @ covariance @ features[held].T + torch.diag(noise[held])
        cross = features[wanted] @ covariance @ features[held].T
        gain = cross @ torch.linalg.inv(kernel)
        means.append(features[wanted] @ prior[task] + gain @ surprise)
        left = features[wanted] @ covariance @ features[wanted].T - gain @ cross.T
        unknown.append(left.diagonal())
    scale, noise = learner.deviation_**2, noise[tasks.query.partner]
    return Prediction(learner.rated(torch.cat(means)), scale * (torch.cat(unknown) + noise), scale * noise)


@torch.no_grad()
def process_density(learner: LinearHeadLearner, tasks: Tasks) -> Tensor:
    """Log density of each task's standardised query given its support, float [T], by the same process."""
    side, found = tasks.support.side, []
    head, answers = learner.head(side), tasks.answers()
    covariance = torch.linalg.inv(head.prior_precision())
    prior = head.prior_mean(tasks.support.entities)
    for task in range(len(tasks)):
        logs = []
        for lists in ((tasks.support,), (tasks.support, answers)):
            parts = [(head.features(one.partners), one, one.owner == task) for one in lists]
            features = torch.cat([made[0][one.partner[mine]] for made, one, mine in parts])
            noise = torch.cat([made[1][one.partner[mine]] for made, one, mine in parts])
            rating = torch.cat([learner.standardised(one.rating[mine]) for _, one, mine in parts])
            kernel = features @ covariance @ features.T + torch.diag(noise)
            law = torch.distributions.MultivariateNormal(features @ prior[task], kernel)
            logs.append(law.log_prob(rating) if len(rating) else rating.sum())
        found.append(logs[1] - logs[0])
    return torch.stack(found)

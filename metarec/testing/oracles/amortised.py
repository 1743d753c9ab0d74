"""What a support tells is a set's, grows with it, and is of no other query."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from metarec.learning import Algorithm, LatentLearner, Training, condition
from metarec.ops import gaussian_posterior
from metarec.tasks import Ragged, Tasks
from metarec.testing.oracles.check import Check, distance, fitted, tasks_of

SIZES = {"size": 4, "latent": 3, "hidden": 8, "layers": 2, "heads": 2, "head_width": 3}
SMALL = {**SIZES, "training": Training(epochs=2)}


def checks(algorithm: type[Algorithm]) -> Iterator[Check]:
    """Hold each prediction to that of its pair alone."""
    for feedback in algorithm.feedback:
        learner = fitted(algorithm, SMALL, implicit=feedback == "implicit")
        tasks = tasks_of("new-user", implicit=feedback == "implicit")
        yield Check(f"a query pair does not see the others ({feedback})", _query_error(learner, tasks), 1e-10)


def latent_checks(algorithm: type[Algorithm]) -> Iterator[Check]:
    """Hold what is read of supports to Gaussian algebra, and its predictions to mixtures written out."""
    for feedback in algorithm.feedback:
        learner = fitted(algorithm, SMALL, implicit=feedback == "implicit")
        assert isinstance(learner, LatentLearner)
        tasks = tasks_of("new-user", implicit=feedback == "implicit")
        yield Check(f"no rating leaves the prior ({feedback})", _prior_error(learner, tasks), 1e-12)
        yield Check(f"more ratings leave less open ({feedback})", _growth(learner, tasks), 0.0)
        yield Check(f"more draws raise the bound ({feedback})", _bound_error(learner, tasks), 0.0)
    yield Check("conditioning is the conjugate posterior", _conjugate_error(), 1e-12)


def _prior_error(learner: LatentLearner, tasks: Tasks) -> float:
    nothing = learner.adapt(tasks.support.first(0))
    return float(torch.maximum(nothing.mean.abs().max(), (nothing.precision - 1).abs().max()))


def _growth(learner: LatentLearner, tasks: Tasks) -> float:
    """How often the mean log precision falls from a support size to the next."""
    levels = [float(learner.adapt(tasks.support.first(size)).precision.log().mean()) for size in (0, 1, 3, 7)]
    return float(sum(after <= before for before, after in pairwise(levels)))


def _query_error(learner: Algorithm, tasks: Tasks) -> float:
    adapted, query = learner.adapt(tasks.support), tasks.query
    first = (query.counts > 0).nonzero().flatten()
    alone = replace(
        query.select(first),
        offsets=torch.arange(len(first) + 1),
        partner=query.partner[query.offsets[:-1][first]],
    )
    found = learner.predict(adapted.select(first), alone).mean
    return distance(found, learner.predict(adapted, query).mean[query.offsets[:-1][first]])


@torch.no_grad()
def _bound_error(learner: LatentLearner, tasks: Tasks) -> float:
    """How far the loss rises, where it should fall, from 1 draw to 4 and to 16; means over the same 512 draws."""
    noise = torch.randn(512, 1 + learner.latent, generator=torch.Generator().manual_seed(1)).double()
    losses = [_mean_loss(learner, tasks, noise.split(draws)) for draws in (1, 4, 16)]
    return max(0.0, losses[1] - losses[0], losses[2] - losses[1])


def _mean_loss(learner: LatentLearner, tasks: Tasks, blocks: tuple[Tensor, ...]) -> float:
    losses = []
    for block in blocks:
        learner.draws = len(block)
        learner.network_.get_submodule("noise").fixed = block
        losses.append(LatentLearner.loss(learner, tasks))
    return float(torch.stack(losses).mean())


def _conjugate_error() -> float:
    """Of observations of z itself, beside the native posterior of a linear model whose features are unit vectors."""
    generator = torch.Generator().manual_seed(0)
    lists = Ragged(torch.tensor([0, 4, 4, 9]), torch.zeros(9, dtype=torch.int64))
    value, weight = torch.randn(2, 9, 3, generator=generator, dtype=torch.float64)
    weight = weight.exp()
    mean, precision = condition(lists, value, weight)
    identity = torch.eye(3, dtype=torch.float64)
    made = gaussian_posterior(
        identity.repeat(9, 1), value.flatten(), weight.flatten(), 3 * lists.offsets, identity[0] * 0, identity
    )
    variance = torch.cholesky_inverse(made.cholesky)
    return max(distance(mean, made.mean), distance(torch.diag_embed(1 / precision), variance))

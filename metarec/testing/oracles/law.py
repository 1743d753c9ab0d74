"""Tasks drawn from a linear Gaussian law, whose predictive distribution is known: what trains on them must near it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import polars as pl
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from metarec.data import Dataset, Entities, RatingScale
from metarec.features import encode, fit_encoders
from metarec.learning import Algorithm, Run, Training
from metarec.tasks import EntityRows, Query, Sampling, Support, Tasks
from metarec.testing.oracles.check import Check, made

KNOWN, NEW, ITEMS, MOST = 320, 120, 16, 8
TASTE, NOISE = 1.0, 0.5


class Law(NamedTuple):
    """Ratings ``r = 3 + u₀ + u₁ x + N(0, ¼)`` of items with a known x = ±1 by users with u ~ N(0, I).

    Parameters
    ----------
    train : Dataset
        All ratings of the known users.
    tasks : Tasks
        Of new users, with 0 to 8 ratings in their supports.
    expected : Normal
        The distribution of each query rating given the support.
    """

    train: Dataset
    tasks: Tasks
    expected: Normal


def checks(algorithm: type[Algorithm], options: Mapping[str, Any], *, most: float) -> Iterator[Check]:
    """Hold what training makes of it to the exact predictive distribution.

    Parameters
    ----------
    algorithm : type[Algorithm]
    options : mapping
        Of which it takes those that it has.
    most : float
        How far, in nats per rating, it may be from the exact distribution in the end.
    """
    short, long = (_divergence(algorithm, {**options, **trained(epochs)}) for epochs in (1, 20))
    yield Check("trained, it nears the exact predictive distribution", long, most)
    yield Check("training halves the divergence from it", long / short, 0.5)


def trained(epochs: int) -> dict[str, Any]:
    """Options for so many epochs of small batches, all of which are run."""
    return {
        "training": Training(epochs=epochs, held_out=0.0, attribute_l2=0.0),
        "sampling": Sampling(tasks=8, max_support=MOST, max_query=ITEMS - MOST),
    }


def _divergence(algorithm: type[Algorithm], options: Mapping[str, Any]) -> float:
    """Mean of KL(exact ‖ predicted) over the query."""
    law = linear_gaussian()
    learner = made(algorithm, options).fit(law.train, run=Run())
    found = learner.predict(learner.adapt(law.tasks.support), law.tasks.query)
    assert found.variance is not None
    return float(kl_divergence(law.expected, Normal(found.mean, found.variance.sqrt())).mean())


@cache
def linear_gaussian() -> Law:
    """Draw 320 known users, 120 new ones, and 16 items."""
    generator = torch.Generator().manual_seed(0)
    x = torch.where(torch.arange(ITEMS) % 2 == 0, 1.0, -1.0)
    features = torch.stack([torch.ones(ITEMS), x], 1)
    users = torch.randn(KNOWN + NEW, 2, generator=generator)
    rating = 3 + users @ features.T + NOISE * torch.randn(KNOWN + NEW, ITEMS, generator=generator)
    data = Dataset(
        name="linear-gaussian",
        users=Entities(pl.Series("user", range(KNOWN)), pl.DataFrame({"one": ["same"] * KNOWN})),
        items=Entities(
            pl.Series("item", range(ITEMS)),
            pl.DataFrame({"kind": ["odd" if one < 0 else "even" for one in x]}),
        ),
        user=torch.arange(KNOWN).repeat_interleave(ITEMS).int(),
        item=torch.arange(ITEMS).repeat(KNOWN).int(),
        rating=rating[:KNOWN].flatten(),
        scale=RatingScale(-9.0, 9.0, relevant_from=4.0),
    )
    train = encode(data, fit_encoders(data))
    tasks = _tasks(train, rating[KNOWN:], generator)
    return Law(train, tasks, _exact(tasks, features))


def _tasks(train: Dataset, rating: Tensor, generator: torch.Generator) -> Tasks:
    assert train.users.features is not None and train.items.features is not None
    order = torch.rand(NEW, ITEMS, generator=generator).argsort(1)
    size = torch.arange(NEW) % (MOST + 1)
    held = torch.arange(ITEMS) < size.unsqueeze(1)
    asked = (torch.arange(ITEMS) >= MOST).expand(NEW, ITEMS)
    ordered = rating.gather(1, order)
    items = EntityRows(torch.arange(ITEMS), train.items.features)
    new = EntityRows(torch.full((NEW,), -1), train.users.features.rows(torch.zeros(NEW, dtype=torch.int64)))
    return Tasks(
        support=Support(_offsets(held), order[held], "user", new, items, ordered[held]),
        query=Query(_offsets(asked), order[asked], items),
        rating=ordered[asked],
        entity=torch.arange(NEW),
        candidates=torch.arange(ITEMS),
    )


def _exact(tasks: Tasks, features: Tensor) -> Normal:
    """Of each query rating, by the normal equations of its task."""
    support, query = tasks.support, tasks.query
    held, asked = features[support.partner], features[query.partner]
    precision = torch.eye(2) + support.sum(held.unsqueeze(2) * held.unsqueeze(1)) / NOISE**2
    shift = support.sum(held * (support.rating - 3).unsqueeze(1)) / NOISE**2
    covariance = torch.linalg.inv(precision)
    mean = (covariance @ shift.unsqueeze(2)).squeeze(2)
    unknown = (asked.unsqueeze(1) @ covariance[query.owner] @ asked.unsqueeze(2)).flatten()
    return Normal(3 + (mean[query.owner] * asked).sum(1), (unknown + NOISE**2).sqrt())


def _offsets(chosen: Tensor) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.int64), chosen.sum(1).cumsum(0)])

"""One rating after the other, in any order, is all at once; and one less undoes one more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from metarec.learning import Adapted, Algorithm, Training, Updatable
from metarec.tasks import Query, Support
from metarec.testing.oracles.check import Check, distance, fitted, tasks_of

SIZE = 4
TOLERANCE = 1e-8


def checks(algorithm: type[Algorithm]) -> Iterator[Check]:
    """Hold `absorb` and `forget` to `adapt`."""
    scenario = "new-user" if "new-user" in algorithm.scenarios else algorithm.scenarios[0]
    for feedback in algorithm.feedback:
        implicit = feedback == "implicit"
        learner = fitted(algorithm, {"training": Training(epochs=1)}, implicit=implicit)
        assert isinstance(learner, Updatable)
        tasks = tasks_of(scenario, implicit=implicit)
        tasks = tasks.select((tasks.support.counts >= SIZE).nonzero().flatten())
        support = tasks.support.first(SIZE)
        prior, at_once = learner.adapt(support.first(0)), learner.adapt(support)
        expected, nothing = (_predicted(learner, state, tasks.query) for state in (at_once, prior))
        for way, order in (
            ("one by one", range(SIZE)),
            ("from the last to the first", reversed(range(SIZE))),
        ):
            state = prior
            for place in order:
                state = learner.absorb(state, _nth(support, place))
            error = distance(_predicted(learner, state, tasks.query), expected)
            yield Check(f"ratings {way} are all at once ({feedback})", error, TOLERANCE)
        for place in (1, 3, 0, 2):
            state = learner.forget(state, _nth(support, place))
        error = distance(_predicted(learner, state, tasks.query), nothing)
        yield Check(f"ratings forgotten one by one leave the prior ({feedback})", error, TOLERANCE)


def _predicted(learner: Algorithm, state: Adapted, query: Query) -> Tensor:
    prediction = learner.predict(state, query)
    return torch.cat([part for part in (prediction.mean, prediction.variance) if part is not None])


def _nth(support: Support, place: int) -> Support:
    """Of each task only the rating at a place."""
    entries = support.offsets[:-1] + place
    offsets = torch.arange(len(support) + 1)
    return replace(support, offsets=offsets, partner=support.partner[entries], rating=support.rating[entries])

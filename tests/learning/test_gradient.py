"""What learners by gradient steps have beside the oracles of their family."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from metarec.learning import Baseline, GradientMetaLearner, Run, Sizes
from metarec.plugins.algorithms.anil import ANIL
from metarec.plugins.algorithms.fomaml import FOMAML
from metarec.plugins.algorithms.maml import MAML
from metarec.plugins.algorithms.melu import MeLU
from metarec.plugins.algorithms.meta_sgd import MetaSGD
from metarec.plugins.algorithms.reptile import Reptile
from metarec.tasks import Tasks
from metarec.testing.oracles.check import tasks_of
from metarec.testing.oracles.gradient import SMALL, Line, moved
from metarec.testing.world import small_world

LEARNERS = [ANIL, FOMAML, MAML, MeLU, MetaSGD, Reptile]


def test_the_second_order_matters():
    tasks = tasks_of("new-user")
    exact, first = (Line(cls, tasks).gradient() for cls in (MAML, FOMAML))
    assert (exact - first).norm() > 0.1 * exact.norm()


@pytest.mark.parametrize("cls", [ANIL, FOMAML, MAML, MeLU])
def test_without_a_rate_it_is_plain_training(cls: type[GradientMetaLearner]):
    train = small_world().split.train
    run = Run(dtype=torch.float64)
    plain = _Plain(**{**SMALL, "inner_rate": 0.0})
    plain.identity = cls.identity
    plain.fit(train, run=run)
    learner = cls(**{**SMALL, "inner_rate": 0.0}).fit(train, run=run)
    for name, weight in plain.network_.named_parameters():
        found = learner.network_.get_parameter(name)
        assert torch.allclose(found, weight, rtol=1e-9, atol=1e-12), name
    tasks = tasks_of("new-user")
    with_ratings, without = (
        learner.predict(learner.adapt(support), tasks.query).mean
        for support in (tasks.support, tasks.support.first(0))
    )
    assert torch.allclose(with_ratings, without, rtol=1e-12)


class _Plain(MAML):
    """Trains the network on the query as if there were no support."""

    def loss(self, tasks: Tasks) -> Tensor:
        side, query = tasks.support.side, tasks.query
        entity = self.towers.entities(side, tasks.support.entities)
        outputs = self.towers.inputs(side, entity, query, query.partners)
        heads = list(self.towers.heads[side])
        for layer in heads[:-1]:
            outputs = layer(outputs).relu()
        return F.mse_loss(heads[-1](outputs)[:, 0], self.standardised(tasks.rating))


@pytest.mark.parametrize("cls", LEARNERS)
def test_but_for_their_biases_only_melu_takes_known_entities_for_new_ones(cls: type[GradientMetaLearner]):
    learner, tasks = moved(cls), tasks_of("warm")
    for baseline in learner.towers.baselines.values():
        cast(Baseline, baseline).bias.fill_(0.3)
    known = learner.predict(learner.adapt(tasks.support), tasks.query).mean
    support, query = (
        replace(lists, partners=replace(lists.partners, rows=torch.full_like(lists.partners.rows, -1)))
        for lists in (tasks.support, tasks.query)
    )
    new = learner.predict(learner.adapt(support), query).mean
    assert torch.equal(known, new) == (cls is MeLU)


def test_an_explanation_starts_from_no_rating():
    learner, tasks = moved(MAML), tasks_of("new-user")
    explanation = learner.explain(learner.adapt(tasks.support), tasks.support, tasks.query)
    nothing = learner.predict(learner.adapt(tasks.support.first(0)), tasks.query)
    assert torch.allclose(explanation.baseline, nothing.mean, rtol=1e-12)


def test_meta_sgd_starts_as_maml_and_learns_its_rates():
    train, tasks = small_world().split.train, small_world().tasks("new-user")
    learner, maml = (cls(**SMALL).fit(train) for cls in (MetaSGD, MAML))
    assert all((factor != 1).any() for factor in learner.network_.factors.parameters())
    start = learner.build(Sizes(**learner.sizes_)).state_dict()
    learner.network_.load_state_dict({**start, **maml.network_.state_dict()})
    found, expected = (one.predict(one.adapt(tasks.support), tasks.query) for one in (learner, maml))
    assert torch.allclose(found.mean, expected.mean, atol=1e-5)

"""Virtual entities: the law of their ratings, and their share of the training tasks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from metarec.data import RatingScale
from metarec.errors import ConfigError
from metarec.learning import Run, Training, VirtualEntities
from metarec.plugins.algorithms.alpaca import Alpaca
from metarec.plugins.algorithms.maml import MAML
from metarec.tasks import Ragged, Sampling, TaskSampler
from metarec.testing.world import small_world

DOUBLE = Run(dtype=torch.float64)
COUNT = 40_000


@pytest.fixture(scope="module")
def virtual() -> VirtualEntities:
    return VirtualEntities.fit(small_world().split.train, DOUBLE)


def sampler(**options: float) -> TaskSampler:
    train = small_world().split.train
    return TaskSampler(
        train, ("user", "item"), Sampling(**options), device=torch.device("cpu"), dtype=torch.float64
    )


@pytest.mark.parametrize("side", ["user", "item"])
def test_ratings_have_the_law_of_the_model(virtual, side):
    """Mean and covariance of one entity's ratings of three partners, over many virtual entities."""
    train, partners = small_world().split.train, torch.tensor([3, 11, 20])
    features = train.entities(side).features.to(dtype=torch.float64).rows(torch.tensor([5]))
    lists = Ragged(3 * torch.arange(COUNT + 1), partners.repeat(COUNT))
    root = 0.7 * torch.randn(9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    prior = virtual.prior[side]._replace(covariance=root @ root.T)
    wide = replace(virtual, prior={side: prior}, scale=RatingScale(-100.0, 100.0, relevant_from=4.0))
    drawn = wide.ratings(
        side, features.rows(torch.zeros(COUNT)), lists, torch.Generator().manual_seed(0)
    ).view(COUNT, 3)
    known = virtual.factors.item if side == "user" else virtual.factors.user
    bias = known[partners, 0]
    design = torch.cat([torch.ones(3, 1), known[partners, 1:]], 1).double()
    theta = features.dense()[0] @ prior.weight + prior.intercept
    mean = virtual.mean + virtual.deviation * (bias + design @ theta)
    covariance = design @ prior.covariance @ design.T + virtual.factors.error * torch.eye(3)
    covariance = virtual.deviation**2 * covariance
    error = (covariance.diagonal() / COUNT).sqrt()
    assert ((drawn.mean(0) - mean).abs() < 4 * error).all()
    assert (drawn.T.cov() - covariance).abs().max() < 0.03 * covariance.max()
    assert (covariance - covariance.diag().diag()).abs().max() > 0.05 * covariance.max()


def test_what_is_learnt_of_content_tells_virtual_entities_apart(virtual):
    """In the small world ratings depend on group and kind."""
    features = small_world().split.train.users.features.to(dtype=torch.float64)
    means = virtual.prior["user"].mean(features)
    assert means.std(0).max() > 0.05
    assert virtual.scale.clip(torch.tensor([-9.0, 9.0])).tolist() == [1, 5]


def test_only_the_ratings_of_their_share_of_the_tasks_are_others(virtual):
    """Who met whom stays, and with the share 0 everything does."""

    def tasks(share: float) -> list:
        drawn = sampler(virtual=share).with_virtual(virtual)
        return list(drawn.epoch(torch.Generator().manual_seed(1)))

    rated = small_world().split.train.rating.unique().double()
    for one, other in zip(tasks(1.0), tasks(1.0), strict=True):
        assert torch.equal(one.support.rating, other.support.rating) and torch.equal(one.rating, other.rating)
        assert not torch.isin(one.rating, rated).all() and ((one.rating >= 1) & (one.rating <= 5)).all()
    plain = list(sampler().epoch(torch.Generator().manual_seed(1)))
    for one, other in zip(tasks(0.0), plain, strict=True):
        assert torch.equal(one.rating, other.rating) and torch.equal(one.query.partner, other.query.partner)
    half = [torch.isin(one.rating, rated).double().mean() for one in tasks(0.5)]
    assert 0.2 < float(torch.stack(half).mean()) < 0.8


def test_what_the_held_out_rated_does_not_shape_them():
    """The model that the epochs are chosen by has seen only the ratings of the rest."""
    everything = sampler(virtual=0.5)
    rest, newcomers = everything.hold_out(0.3, torch.Generator().manual_seed(0))
    train = small_world().split.train
    assert everything.interactions.tolist() == list(range(len(train)))
    kept = train.take(rest.interactions)
    assert 0 < len(kept) < len(train)
    gone = {int(entity) for tasks in newcomers for entity in tasks.entity if tasks.support.side == "user"}
    assert gone and len(set(kept.user.tolist())) < len(train.users)
    assert all(torch.isin(tasks.rating, train.rating.double().unique()).all() for tasks in newcomers)


def test_learners_train_on_them():
    plan = {"size": 4, "rank": 3, "training": Training(epochs=2)}
    train = small_world().split.train
    with_them, again, without = (
        Alpaca(**plan, sampling=Sampling(virtual=share)).fit(train).state()["network_"]
        for share in (0.5, 0.5, 0.0)
    )
    assert all(torch.equal(value, again[name]) for name, value in with_them.items())
    assert any(not torch.equal(value, without[name]) for name, value in with_them.items())


def test_choices_have_none():
    learner = MAML(training=Training(epochs=1), sampling=Sampling(virtual=0.2))
    with pytest.raises(ConfigError, match=r"sampling.virtual is 0.2, expected 0 where feedback is implicit$"):
        learner.fit(small_world(implicit=True).split.train)

"""Newcomers among factors: the content prior without a rating, closed forms and steps written out with some."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metarec.learning import Descent, FactorHeadLearner, Run, Training
from metarec.plugins.algorithms.meta_cf import MetaCF
from metarec.plugins.algorithms.meta_content import MetaContent
from metarec.tasks import Tasks
from metarec.testing.world import small_world

SMALL = {
    "size": 4,
    "descent": Descent(rank=3, epochs=5),
    "training": Training(epochs=8, learning_rate=0.03, held_out=0),
}
DOUBLE = Run(dtype=torch.float64)


@pytest.fixture(scope="module")
def content() -> MetaContent:
    return MetaContent(**SMALL).fit(small_world().split.train, run=DOUBLE)


@pytest.fixture(scope="module", params=["explicit", "implicit"])
def cosine(request: pytest.FixtureRequest) -> MetaCF:
    world = small_world(implicit=request.param == "implicit")
    return MetaCF(**SMALL, inner_steps=3).fit(world.split.train, run=DOUBLE)


def doubled(scenario: str, *, implicit: bool = False) -> Tasks:
    tasks = small_world(implicit=implicit).tasks(scenario)
    support, query = tasks.support.to(dtype=torch.float64), tasks.query.to(dtype=torch.float64)
    return replace(tasks, support=support, query=query, rating=tasks.rating.double())


@pytest.mark.parametrize("scenario", ["new-user", "new-item", "new-both"])
def test_without_a_rating_it_is_the_content_prior(content: MetaContent, scenario: str):
    tasks = doubled(scenario)
    found = content.adapt(tasks.support.first(0))
    prior = content.head(tasks.support.side).prior_mean(tasks.support.entities)
    assert prior.std(0).max() > 1e-3, "attributes should make a difference"
    torch.testing.assert_close(found.mean, prior, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scenario", ["new-user", "new-item"])
def test_many_ratings_lead_to_the_collaborative_answer_whatever_the_content(
    content: MetaContent, scenario: str
):
    """That is weighted least squares on the factors of the factorisation; the content counts as 1/n."""
    support = doubled(scenario).support
    support = support.select((support.counts >= 6).nonzero().flatten())
    features, noise = content.features(support.side, support, support.partners)
    known = content.factors_["item" if scenario == "new-user" else "user"]
    rows = support.partners.rows[support.partner]
    torch.testing.assert_close(features[:, :-1], known[rows], rtol=0, atol=0)
    away = []
    for times in (10_000, 100_000):
        again = torch.arange(support.partner.numel()).view(-1, 1).expand(-1, times).flatten()
        many = replace(
            support,
            offsets=support.offsets * times,
            partner=support.partner[again],
            rating=support.rating[again],
        )
        mean = content.adapt(many).mean
        worst = 0.0
        for task in range(len(support)):
            mine = support.owner == task
            root = noise[mine].rsqrt()
            target = root * content.standardised(support.rating[mine])
            fitted = torch.linalg.lstsq(root[:, None] * features[mine], target[:, None]).solution
            left = root[:, None] * features[mine] @ (mean[task][:, None] - fitted)
            worst = max(worst, float(left.detach().abs().max()))
        away.append(worst)
    assert away[1] < 0.05 and away[1] == pytest.approx(away[0] / 10, rel=0.3)


@pytest.mark.parametrize("scenario", ["new-user", "new-item"])
def test_steps_of_meta_cf_are_those_of_the_cosine_models_loss(cosine: MetaCF, scenario: str):
    """By autograd, task by task, on the sphere of the factors' length."""
    support = doubled(scenario, implicit=cosine.implicit_).support
    found = cosine.adapt(support).mean_head()
    head = cosine.factor_head(support.side)
    rate = head.adapter["log_rate"].exp().detach()
    prior_ratings = float(head.adapter["log_prior_ratings"].detach().exp())
    features = cosine.features(support.side, support, support.partners)[0].detach()
    length = head.table[0, 1:].norm()
    starts = head.prior_mean(support.entities).detach()
    for task in range(len(support)):
        mine = support.owner == task
        target = cosine.standardised(support.rating[mine])

        def on_sphere(theta: torch.Tensor) -> torch.Tensor:
            turned = theta.clone()
            turned[1:-1] *= length / theta[1:-1].norm()
            return turned

        theta = on_sphere(starts[task])
        for _ in range(cosine.inner_steps):
            theta.requires_grad_()
            output = features[mine] @ theta
            if cosine.implicit_:
                loss = torch.nn.functional.binary_cross_entropy_with_logits(output, target, reduction="sum")
            else:
                loss = (output - target).square().sum() / 2
            (gradient,) = torch.autograd.grad(loss, theta)
            theta = on_sphere((theta - rate * gradient / (int(mine.sum()) + prior_ratings)).detach())
        torch.testing.assert_close(found[task], theta, rtol=0, atol=1e-10)


def test_known_entities_have_one_length_and_predict_by_their_cosine(cosine: MetaCF):
    users, items = cosine.factors_["user"], cosine.factors_["item"]
    lengths = torch.cat([users[:, 1:].norm(dim=1), items[:, 1:].norm(dim=1)])
    torch.testing.assert_close(lengths, lengths[:1].expand_as(lengths))


@pytest.mark.parametrize("learner", [MetaCF, MetaContent])
def test_stopped_and_resumed_it_ends_with_the_same_numbers(learner: type[FactorHeadLearner], tmp_path: Path):
    train, file = small_world().split.train, tmp_path / "checkpoint.safetensors"
    plan = {**SMALL, "training": Training(epochs=3, schedule="constant", warm_up=0, held_out=0)}
    whole = learner(**plan).fit(train)
    short = {**plan, "training": Training(epochs=1, schedule="constant", warm_up=0, held_out=0)}
    learner(**short).fit(train, run=Run(checkpoint=file))
    resumed = learner(**plan).fit(train, run=Run(checkpoint=file))
    for name, value in whole.state()["network_"].items():
        assert torch.equal(value, resumed.state()["network_"][name]), name

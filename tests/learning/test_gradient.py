"""Learners by gradient steps against autograd through loops written out, and against least squares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from metarec.data import Side, partner_side
from metarec.learning import GradientMetaLearner, Run, Sizes, Training
from metarec.plugins.algorithms.anil import ANIL
from metarec.plugins.algorithms.fomaml import FOMAML
from metarec.plugins.algorithms.maml import MAML
from metarec.plugins.algorithms.melu import MeLU
from metarec.plugins.algorithms.meta_sgd import MetaSGD
from metarec.plugins.algorithms.reptile import Reptile
from metarec.tasks import EntityRows, Tasks
from metarec.testing.world import small_world

LEARNERS = [ANIL, FOMAML, MAML, MeLU, MetaSGD, Reptile]
SMALL: Mapping[str, Any] = {
    "size": 3,
    "hidden": (4,),
    "inner_rate": 0.3,
    "prior_ratings": 2,
    "training": Training(epochs=1),
}


def fitted(cls: type[GradientMetaLearner], *, implicit: bool = False, **options: Any) -> GradientMetaLearner:
    """Fitted in float64, then given weights far from where they start."""
    train = small_world(implicit=implicit).split.train
    learner = cls(**{**SMALL, **options}).fit(train, run=Run(dtype=torch.float64))
    generator = torch.Generator().manual_seed(3)
    for weight in learner.network_.parameters():
        noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        weight.data += 0.3 * noise
    return learner


def tasks_of(scenario: str, *, implicit: bool = False) -> Tasks:
    tasks = small_world(implicit=implicit).tasks(scenario)
    support, query = (part.to(dtype=torch.float64) for part in (tasks.support, tasks.query))
    return Tasks(support, query, tasks.rating.double(), tasks.entity, tasks.candidates)


def by_hand(learner: GradientMetaLearner, tasks: Tasks) -> Tensor:
    """The outputs for the query, task by task, differentiable as the learner's training is."""
    return torch.cat([_outputs_of(learner, tasks, task) for task in range(len(tasks))])


def _outputs_of(learner: GradientMetaLearner, tasks: Tasks, task: int) -> Tensor:
    weights = dict(learner.network_.named_parameters())
    support, query, side = tasks.support, tasks.query, tasks.support.side
    owned, asked = (slice(*lists.offsets[task : task + 2].tolist()) for lists in (support, query))
    own = _vectors(weights, side, support.entities)[task]

    def inputs(partners: EntityRows, partner: Tensor) -> Tensor:
        theirs = _vectors(weights, partner_side(side), partners)[partner]
        return torch.stack([torch.cat([own, one, own * one]) for one in theirs])

    start = [part for name, part in weights.items() if name.startswith(f"heads.{side}")]
    if owned.stop == owned.start:
        return _forward(start, inputs(query.partners, query.partner[asked]))
    seen, rating = inputs(support.partners, support.partner[owned]), _standardised(learner, support.rating)
    ends = _steps(learner, side, start, seen, rating[owned])
    return _forward(ends, inputs(query.partners, query.partner[asked]))


def _vectors(weights: Mapping[str, Tensor], side: Side, entities: EntityRows) -> Tensor:
    vectors = entities.features.dense() @ weights[f"embeddings.{side}.content"]
    if f"embeddings.{side}.own" not in weights:
        return vectors
    own = weights[f"embeddings.{side}.own"]
    return torch.stack(
        [
            vector + own[row] if row >= 0 else vector
            for vector, row in zip(vectors, entities.rows, strict=True)
        ]
    )


def _standardised(learner: GradientMetaLearner, rating: Tensor) -> Tensor:
    return (rating - learner.mean_) / learner.deviation_


def _steps(
    learner: GradientMetaLearner, side: Side, start: list[Tensor], inputs: Tensor, target: Tensor
) -> list[Tensor]:
    frozen = len(start) - 2 if isinstance(learner, ANIL) else 0
    factors = [
        part for name, part in learner.network_.named_parameters() if name.startswith(f"factors.{side}")
    ]
    now = list(start)
    for _ in range(learner.inner_steps):
        shrinkage = len(target) / (len(target) + learner.prior_ratings)
        loss = shrinkage * _support_loss(learner, _forward(now, inputs), target)
        gradients = torch.autograd.grad(loss, now[frozen:], create_graph=True)
        if isinstance(learner, FOMAML | Reptile):
            gradients = tuple(gradient.detach() for gradient in gradients)
        rates = [learner.inner_rate * factor for factor in factors] or [learner.inner_rate] * len(gradients)
        moved = [p - r * g for p, r, g in zip(now[frozen:], rates, gradients, strict=True)]
        now = [*now[:frozen], *moved]
    return now


def _forward(parameters: list[Tensor], inputs: Tensor) -> Tensor:
    outputs = F.linear(inputs, *parameters[:2])
    for weight, bias in zip(parameters[2::2], parameters[3::2], strict=True):
        outputs = F.linear(outputs.relu(), weight, bias)
    return outputs


def _support_loss(learner: GradientMetaLearner, outputs: Tensor, target: Tensor) -> Tensor:
    if learner.implicit_:
        return F.binary_cross_entropy_with_logits(outputs[:, 0], target)
    if learner.uncertainty:
        return F.gaussian_nll_loss(outputs[:, 0], target, outputs[:, 1].exp())
    return F.mse_loss(outputs[:, 0], target) / 2


def gradients_of(learner: GradientMetaLearner, loss: Tensor) -> dict[str, Tensor]:
    names, weights = zip(*learner.network_.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def assert_same_gradients(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, gradient in expected.items():
        scale = gradient.abs().max().clamp(min=1e-3)
        assert (found[name] - gradient).abs().max() <= 1e-10 * scale, name


CASES = [
    pytest.param(cls, scenario, kind, id=f"{cls.name}-{scenario}-{kind}")
    for cls in LEARNERS
    for scenario, kind in (("warm", "ratings"), ("new-item", "uncertain"), ("new-both", "implicit"))
]


@pytest.mark.parametrize(("cls", "scenario", "kind"), CASES)
def test_predictions_and_meta_gradients_are_those_of_the_steps_written_out(
    cls: type[GradientMetaLearner], scenario: str, kind: str
):
    learner = fitted(cls, implicit=kind == "implicit", uncertainty=kind == "uncertain")
    tasks = tasks_of(scenario, implicit=kind == "implicit")
    outputs = by_hand(learner, tasks)
    prediction = learner.predict(learner.adapt(tasks.support), tasks.query)
    mean = learner.mean_ + learner.deviation_ * outputs[:, 0]
    assert torch.allclose(prediction.mean, mean.detach(), rtol=1e-11, atol=1e-11)
    target = _standardised(learner, tasks.rating)
    if kind == "implicit":
        expected = F.binary_cross_entropy_with_logits(outputs[:, 0], target)
    elif kind == "uncertain":
        variance = outputs[:, 1].exp()
        assert torch.allclose(prediction.variance, learner.deviation_**2 * variance.detach(), rtol=1e-10)
        law = torch.distributions.Normal(outputs[:, 0], variance.sqrt())
        expected = -law.log_prob(target).mean()
    else:
        assert prediction.variance is None
        expected = (outputs[:, 0] - target).square().mean()
    loss = learner.loss(tasks)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-11)
    assert_same_gradients(gradients_of(learner, loss), gradients_of(learner, expected))


class Line:
    """A learner whose head is linear, so that its support loss is ``½(φ−w)ᵀH(φ−w)`` plus a constant."""

    def __init__(self, cls: type[GradientMetaLearner], tasks: Tasks) -> None:
        self.learner = fitted(cls, hidden=())
        self.tasks = tasks
        side = tasks.support.side
        self.parts = [self.learner.towers.layers(side)[0][0], self.learner.towers.layers(side)[0][1]]
        self.start = torch.cat([part.detach().flatten() for part in self.parts])

    def rows(self, task: int, *, query: bool = False) -> tuple[Tensor, Tensor]:
        """Inputs with a constant, and standardised ratings, of a task's support or query."""
        side, support = self.tasks.support.side, self.tasks.support
        lists, rating = (self.tasks.query, self.tasks.rating) if query else (support, support.rating)
        entity = self.learner.towers.entities(side, support.entities)
        inputs = self.learner.towers.inputs(side, entity, lists, lists.partners).detach()
        chosen = lists.owner == task
        one = torch.ones(int(chosen.sum()), 1, dtype=torch.float64)
        return torch.cat([inputs[chosen], one], 1), _standardised(self.learner, rating[chosen])

    def shrinkage(self, inputs: Tensor) -> Tensor:
        """(I − αH)^K."""
        identity = torch.eye(inputs.size(1), dtype=torch.float64)
        curvature = inputs.T @ inputs / (len(inputs) + self.learner.prior_ratings)
        return torch.linalg.matrix_power(
            identity - self.learner.inner_rate * curvature, self.learner.inner_steps
        )

    def gradient(self) -> Tensor:
        """What `backward` adds to the head's gradient."""
        self.learner.network_.zero_grad()
        self.learner.backward(self.tasks)
        return torch.cat([part.grad.flatten() for part in self.parts])


@pytest.mark.parametrize("cls", [MAML, FOMAML])
def test_on_least_squares_the_meta_gradient_is_the_shrunk_gradient_of_the_query(
    cls: type[GradientMetaLearner],
):
    line = Line(cls, tasks_of("new-user"))
    expected = torch.zeros_like(line.start)
    for task in range(len(line.tasks)):
        inputs, rating = line.rows(task)
        asked, truth = line.rows(task, query=True)
        shrinkage = line.shrinkage(inputs)
        solution = torch.linalg.lstsq(inputs, rating, driver="gelsd").solution if len(rating) else line.start
        end = solution + shrinkage @ (line.start - solution)
        gradient = 2 * asked.T @ (asked @ end - truth) / len(line.tasks.rating)
        expected += shrinkage.T @ gradient if cls is MAML else gradient
    found = line.gradient()
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_the_second_order_matters():
    tasks = tasks_of("new-user")
    exact, first = (Line(cls, tasks).gradient() for cls in (MAML, FOMAML))
    assert (exact - first).norm() > 0.1 * exact.norm()


def test_reptile_stands_still_where_the_ways_of_its_tasks_cancel():
    tasks = tasks_of("new-item")
    line = Line(Reptile, tasks)
    ways, pulls = [], []
    for task in range(len(tasks)):
        parts = (line.rows(task), line.rows(task, query=True))
        inputs, rating = (torch.cat(both) for both in zip(*parts, strict=True))
        way = torch.eye(inputs.size(1), dtype=torch.float64) - line.shrinkage(inputs)
        ways.append(way)
        pulls.append(way @ torch.linalg.lstsq(inputs, rating, driver="gelsd").solution)
    total, pull = torch.stack(ways).mean(0), torch.stack(pulls).mean(0)
    expected = total @ line.start - pull
    assert (line.gradient() - expected).abs().max() <= 1e-11 * expected.abs().max()
    fixed = torch.linalg.lstsq(total, pull, driver="gelsd").solution
    for part, values in zip(line.parts, fixed.split([len(fixed) - 1, 1]), strict=True):
        part.data = values.view_as(part)
    assert line.gradient().abs().max() <= 1e-10


def test_reptile_trains_embeddings_by_the_loss_where_the_steps_end():
    learner, tasks = fitted(Reptile), tasks_of("new-user")
    everything = _all_ratings_twice(tasks)
    target = _standardised(learner, everything.rating)
    expected = (by_hand(learner, everything)[:, 0] - target).square().mean()
    learner.network_.zero_grad()
    loss = learner.backward(tasks)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-11)
    gradients = gradients_of(learner, expected)
    found = {
        name: weight.grad
        for name, weight in learner.network_.named_parameters()
        if name.startswith("embeddings")
    }
    assert_same_gradients(found, {name: gradients[name] for name in found})


def _all_ratings_twice(tasks: Tasks) -> Tasks:
    """Support and query each hold all ratings of the task."""
    support, query = tasks.support, tasks.query
    order = torch.cat([support.owner, query.owner]).argsort(stable=True)
    partner = torch.cat([support.partner, query.partner])[order]
    rating = torch.cat([support.rating, tasks.rating])[order]
    offsets = support.offsets + query.offsets
    return replace(
        tasks,
        support=replace(support, offsets=offsets, partner=partner, rating=rating),
        query=replace(query, offsets=offsets, partner=partner),
        rating=rating,
    )


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
def test_only_melu_takes_known_entities_for_new_ones(cls: type[GradientMetaLearner]):
    learner, tasks = fitted(cls), tasks_of("warm")
    known = learner.predict(learner.adapt(tasks.support), tasks.query).mean
    support, query = (
        replace(lists, partners=replace(lists.partners, rows=torch.full_like(lists.partners.rows, -1)))
        for lists in (tasks.support, tasks.query)
    )
    new = learner.predict(learner.adapt(support), query).mean
    assert torch.equal(known, new) == (cls is MeLU)


def test_an_explanation_starts_from_no_rating():
    learner, tasks = fitted(MAML), tasks_of("new-user")
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

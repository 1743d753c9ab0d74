"""Gradient steps written out by autograd, and what they come to on least squares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from metarec.data import Side, partner_side
from metarec.learning import Algorithm, Biases, EntityEmbedding, GradientMetaLearner, Training
from metarec.tasks import EntityRows, Ragged, Tasks
from metarec.testing.oracles.check import Check, distance, fitted, tasks_of

SMALL: Mapping[str, Any] = {
    "size": 3,
    "hidden": (4,),
    "inner_rate": 0.3,
    "prior_ratings": 2.0,
    "training": Training(epochs=1),
}


def checks(algorithm: type[Algorithm]) -> Iterator[Check]:
    """Hold predictions and meta-gradients to the steps written out, and to their closed form for a linear head."""
    assert issubclass(algorithm, GradientMetaLearner)
    for scenario, kind in (("warm", "ratings"), ("new-item", "uncertain"), ("new-both", "implicit")):
        implicit = kind == "implicit"
        learner = moved(algorithm, implicit=implicit, uncertainty=kind == "uncertain")
        tasks = tasks_of(scenario, implicit=implicit)
        outputs = steps_written_out(learner, tasks)
        prediction = learner.predict(learner.adapt(tasks.support), tasks.query)
        mean = distance(prediction.mean, learner.rated(outputs[:, 0]).detach())
        yield Check(f"mean after the steps written out ({scenario}, {kind})", mean, 1e-11)
        expected = _query_loss(learner, outputs, tasks.rating)
        if algorithm.trains_by == "query":
            yield Check(
                f"meta-gradient by autograd through the steps ({scenario}, {kind})",
                _gradient_distance(learner, tasks, expected),
                1e-10,
            )
    line = Line(algorithm, tasks_of("new-user"))
    if algorithm.adapt_layers == "all" and line.steps_are_plain:
        yield from _least_squares(line)
    if algorithm.trains_by == "displacement":
        yield _embeddings_follow_the_loss_at_the_end(algorithm)
    if algorithm.trains_by == "optimum":
        yield from _optimum(algorithm)


def _least_squares(line: Line) -> Iterator[Check]:
    found = line.gradient()
    yield Check("heads on least squares end at (I − αH)^K from their start", line.end_distance(), 1e-11)
    if line.learner.trains_by == "displacement":
        yield Check(
            "update on least squares is the mean way (I − (I − αH)^K)(θ − w)",
            distance(found, line.way()),
            1e-11,
        )
        line.stand_still()
        yield Check("it stands still where the ways cancel", float(line.gradient().abs().max()), 1e-10)
    elif line.learner.trains_by == "query":
        expected = line.meta_gradient(line.learner.order)
        yield Check("meta-gradient on least squares in closed form", distance(found, expected), 1e-12)
        yield Check(
            "steps on least squares end at the mode under the prior precision h r / (1 − r), r = (1 − αh)^K",
            max(distance(line.mode(task), line.end(task)) for task in range(len(line.tasks))),
            1e-11,
        )


def _optimum(algorithm: type[GradientMetaLearner]) -> Iterator[Check]:
    """Steps enough to arrive, and a solver exact enough, for the gradient to be that of the minimum itself."""
    # The pull is strong enough that no task's minimum lies on the kink of a ReLU, where there is no derivative.
    exact = {"inner_steps": 300, "inner_rate": 0.01, "pull": 60.0, "cg_steps": 60}
    line = Line(algorithm, tasks_of("new-user"), **exact)
    expected = line.loss_at_minimum()
    yield Check(
        "gradient by autograd through the exact minimum, on least squares",
        _gradient_distance(line.learner, line.tasks, expected),
        1e-11,
    )
    for kind in ("ratings", "uncertain", "implicit"):
        implicit = kind == "implicit"
        learner = moved(algorithm, implicit=implicit, uncertainty=kind == "uncertain", **exact)
        tasks = tasks_of("new-user", implicit=implicit)
        error = _gradient_distance(learner, tasks, learner.loss(tasks))
        yield Check(f"gradient through steps that have arrived ({kind})", error, 1e-8)


def moved(
    algorithm: type[GradientMetaLearner], *, implicit: bool = False, **options: Any
) -> GradientMetaLearner:
    """A fitted learner whose weights are then moved far from where they started, so that no term of a formula is 0."""
    learner = fitted(algorithm, {**SMALL, **options}, implicit=implicit)
    generator = torch.Generator().manual_seed(3)
    for weight in learner.network_.parameters():
        weight.data += 0.3 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    return learner


def steps_written_out(learner: GradientMetaLearner, tasks: Tasks) -> Tensor:
    """The outputs for the query, task by task, differentiable as training differentiates them."""
    return torch.cat([_outputs_of(learner, tasks, task) for task in range(len(tasks))])


def _outputs_of(learner: GradientMetaLearner, tasks: Tasks, task: int) -> Tensor:
    support, query, side = tasks.support, tasks.query, tasks.support.side
    owned, asked = (slice(*lists.offsets[task : task + 2].tolist()) for lists in (support, query))
    own = _vectors(learner, side, support.entities)[task]

    def inputs(partners: EntityRows, partner: Tensor) -> Tensor:
        theirs = _vectors(learner, partner_side(side), partners)[partner]
        biases = _biases(learner, partner_side(side), partners)[partner]
        return torch.stack(
            [torch.cat([own, v, own * v, b[None]]) for v, b in zip(theirs, biases, strict=True)]
        )

    head: list[Tensor] = list(learner.towers.heads[side].parameters())
    if owned.stop > owned.start:
        seen = inputs(support.partners, support.partner[owned])
        head = _steps(learner, side, head, seen, learner.standardised(support.rating[owned]))
    return _forward(head, inputs(query.partners, query.partner[asked]))


def _vectors(learner: GradientMetaLearner, side: Side, entities: EntityRows) -> Tensor:
    embedding = cast(EntityEmbedding, learner.towers.embeddings[side])
    vectors: Tensor = entities.features.dense() @ embedding.content
    if embedding.own is None:
        return vectors
    own = [embedding.own[row] if row >= 0 else torch.zeros_like(embedding.own[0]) for row in entities.rows]
    return vectors + torch.stack(own)


def _biases(learner: GradientMetaLearner, side: Side, entities: EntityRows) -> Tensor:
    found = Biases(**learner.biases_)
    own, met = found.bias[side], found.met[side]["mean"]
    known = [float(own[row]) if row >= 0 else met for row in entities.rows.tolist()]
    return (found.mean - learner.mean_ + torch.tensor(known, dtype=torch.float64)) / learner.deviation_


def _steps(
    learner: GradientMetaLearner, side: Side, head: list[Tensor], inputs: Tensor, target: Tensor
) -> list[Tensor]:
    """Take the steps of one task from the parameters of its head."""
    frozen = len(head) - 2 if learner.adapt_layers == "last" else 0
    pairs = learner.steps(side).parameter_rates or ()
    factors: list[Tensor | float] = [factor for pair in pairs for factor in pair]
    factors = factors or [1.0] * (len(head) - frozen)
    now = list(head)
    for _ in range(learner.inner_steps):
        share = len(target) / (len(target) + learner.prior_ratings)
        loss = share * _support_loss(learner, _forward(now, inputs), target)
        pull = learner.steps(side).pull / 2
        away = [(part - start).square().sum() for part, start in zip(now, head, strict=True)]
        loss = loss + pull * torch.stack(away).sum()
        gradients = torch.autograd.grad(loss, now[frozen:], create_graph=learner.order == 2)
        steps = [
            learner.inner_rate * factor * gradient
            for factor, gradient in zip(factors, gradients, strict=True)
        ]
        now = [*now[:frozen], *(part - step for part, step in zip(now[frozen:], steps, strict=True))]
    return now


def _forward(head: list[Tensor], inputs: Tensor) -> Tensor:
    outputs = F.linear(inputs, *head[:2])
    for weight, bias in zip(head[2::2], head[3::2], strict=True):
        outputs = F.linear(outputs.relu(), weight, bias)
    return outputs


def _support_loss(learner: GradientMetaLearner, outputs: Tensor, target: Tensor) -> Tensor:
    if learner.implicit_:
        return F.binary_cross_entropy_with_logits(outputs[:, 0], target)
    if learner.uncertainty:
        return F.gaussian_nll_loss(outputs[:, 0], target, outputs[:, 1].exp())
    return F.mse_loss(outputs[:, 0], target) / 2


def _query_loss(learner: GradientMetaLearner, outputs: Tensor, rating: Tensor) -> Tensor:
    target = learner.standardised(rating)
    if learner.implicit_:
        return F.binary_cross_entropy_with_logits(outputs[:, 0], target)
    if learner.uncertainty:
        return F.gaussian_nll_loss(outputs[:, 0], target, outputs[:, 1].exp(), full=True)
    return F.mse_loss(outputs[:, 0], target)


def _gradient_distance(learner: GradientMetaLearner, tasks: Tasks, expected: Tensor) -> float:
    """Of what `backward` adds to the gradients from the gradients of `expected`; the losses must be the same, too."""
    weights = list(learner.network_.parameters())
    gradients = torch.autograd.grad(expected, weights, allow_unused=True, materialize_grads=True)
    learner.network_.zero_grad()
    loss = learner.backward(tasks)
    found = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    return max(distance(loss.detach(), expected.detach()), *map(distance, found, gradients))


def _embeddings_follow_the_loss_at_the_end(algorithm: type[GradientMetaLearner]) -> Check:
    learner, tasks = moved(algorithm), _all_ratings_twice(tasks_of("new-user"))
    expected = _query_loss(learner, steps_written_out(learner, tasks), tasks.rating)
    weights = list(learner.towers.embeddings.parameters())
    gradients = torch.autograd.grad(expected, weights, allow_unused=True, materialize_grads=True)
    learner.network_.zero_grad()
    learner.backward(tasks_of("new-user"))
    found = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    name = "embeddings follow the gradient of the loss where the steps end"
    return Check(name, max(map(distance, found, gradients)), 1e-10)


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


class Line:
    """A learner whose head is linear, so that its support loss is ``½(φ−w)ᵀH(φ−w)`` plus a constant."""

    def __init__(self, algorithm: type[GradientMetaLearner], tasks: Tasks, **options: Any) -> None:
        self.learner = moved(algorithm, hidden=(), **options)
        self.tasks = tasks
        side = tasks.support.side
        self.parts = list(self.learner.towers.layers(side)[0])
        self.start = torch.cat([part.detach().flatten() for part in self.parts])
        steps = self.learner.steps(side)
        self.steps_are_plain = steps.parameter_rates is None and steps.pull == 0

    def gradient(self) -> Tensor:
        """What `backward` adds to the head's gradient."""
        self.learner.network_.zero_grad()
        self.learner.backward(self.tasks)
        return torch.cat([part.grad.flatten() for part in self.parts if part.grad is not None])

    @torch.no_grad()
    def end_distance(self) -> float:
        """Of the predictions from those of heads in closed form."""
        expected = torch.cat([self._asked(task)[0] @ self.end(task) for task in range(len(self.tasks))])
        learner, tasks = self.learner, self.tasks
        found = learner.predict(learner.adapt(tasks.support), tasks.query).mean
        return distance(found, learner.rated(expected))

    @torch.no_grad()
    def meta_gradient(self, order: int) -> Tensor:
        """Sum of ``((I−αH)^K)ᵀ∇L_Q(φ_K)`` over the tasks, or of ``∇L_Q(φ_K)`` where the order is 1."""
        total = torch.zeros_like(self.start)
        for task in range(len(self.tasks)):
            inputs, target = self._asked(task)
            gradient = 2 * inputs.T @ (inputs @ self.end(task) - target) / len(self.tasks.rating)
            total += self._shrinkage(self._seen(task)[0]).T @ gradient if order == 2 else gradient
        return total

    @torch.no_grad()
    def mode(self, task: int) -> Tensor:
        """The mode of a task's head under a Gaussian prior at the start that is as strong as the steps are few.

        It is diagonal in the eigenbasis of the curvature H: for each eigenvalue h and ``r = (1 − αh)^K`` its precision
        is ``h r / (1 − r)``, or ``1 / (αK)`` where h is 0.
        """
        inputs, target = self._seen(task)
        rate, count = self.learner.inner_rate, self.learner.inner_steps
        values, basis = torch.linalg.eigh(self._curvature(inputs))
        values = torch.where(values > 1e-12, values, 0.0)
        left = (1 - rate * values).pow(count)
        precision = torch.where(values > 0, values * left / (1 - left), 1 / (rate * count))
        prior = basis @ torch.diag(precision) @ basis.T
        slope = inputs.T @ target / (len(inputs) + self.learner.prior_ratings)
        mode: Tensor = torch.linalg.solve(self._curvature(inputs) + prior, slope + prior @ self.start)
        return mode

    def loss_at_minimum(self) -> Tensor:
        """Mean squared error of the query at ``argmin L_S(φ) + λ/2 ‖φ − θ‖²``, differentiable in all weights."""
        side, outputs = self.tasks.support.side, []
        pull = self.learner.steps(side).pull
        start = torch.cat([part.flatten() for part in self.parts])
        for task in range(len(self.tasks)):
            inputs, target = self._seen(task)
            matrix = self._curvature(inputs) + pull * torch.eye(len(start), dtype=start.dtype)
            slope = inputs.T @ target / (len(inputs) + self.learner.prior_ratings)
            outputs.append(self._asked(task)[0] @ torch.linalg.solve(matrix, slope + pull * start))
        return F.mse_loss(torch.cat(outputs), self.learner.standardised(self.tasks.rating))

    def way(self) -> Tensor:
        """Mean of ``(I−(I−αH)^K)(θ−w)`` over the tasks."""
        total, pull = self._mean_way()
        return total @ self.start - pull

    def stand_still(self) -> None:
        """Put the start where the ways of the tasks cancel."""
        total, pull = self._mean_way()
        fixed = torch.linalg.lstsq(total, pull, driver="gelsd").solution
        for part, values in zip(self.parts, fixed.split([len(fixed) - 1, 1]), strict=True):
            part.data = values.view_as(part)

    @torch.no_grad()
    def _mean_way(self) -> tuple[Tensor, Tensor]:
        """M and v of the mean way Mθ − v."""
        ways, pulls = [], []
        for task in range(len(self.tasks)):
            parts = (self._seen(task), self._asked(task))
            inputs, target = (torch.cat(both) for both in zip(*parts, strict=True))
            ways.append(torch.eye(inputs.size(1), dtype=torch.float64) - self._shrinkage(inputs))
            pulls.append(ways[-1] @ _least_squares_solution(inputs, target))
        return torch.stack(ways).mean(0), torch.stack(pulls).mean(0)

    def _seen(self, task: int) -> tuple[Tensor, Tensor]:
        """Inputs, with a constant, and standardised ratings of a task's support."""
        support = self.tasks.support
        return self._rows(support, support.partners, support.rating, task)

    def _asked(self, task: int) -> tuple[Tensor, Tensor]:
        """The same of its query."""
        return self._rows(self.tasks.query, self.tasks.query.partners, self.tasks.rating, task)

    def _rows(self, lists: Ragged, partners: EntityRows, rating: Tensor, task: int) -> tuple[Tensor, Tensor]:
        side, towers = self.tasks.support.side, self.learner.towers
        entity = towers.entities(side, self.tasks.support.entities)
        inputs = towers.inputs(side, entity, lists, partners)[lists.owner == task]
        one = inputs.new_ones(len(inputs), 1)
        return torch.cat([inputs, one], 1), self.learner.standardised(rating[lists.owner == task])

    def _curvature(self, inputs: Tensor) -> Tensor:
        """H."""
        return inputs.T @ inputs / (len(inputs) + self.learner.prior_ratings)

    def _shrinkage(self, inputs: Tensor) -> Tensor:
        """(I − αH)^K."""
        identity = torch.eye(inputs.size(1), dtype=torch.float64)
        step = identity - self.learner.inner_rate * self._curvature(inputs)
        power: Tensor = torch.linalg.matrix_power(step, self.learner.inner_steps)
        return power

    @torch.no_grad()
    def end(self, task: int) -> Tensor:
        """``w + (I−αH)^K (θ − w)``, where a task's steps end."""
        inputs, target = self._seen(task)
        solution = _least_squares_solution(inputs, target) if len(target) else self.start
        return solution + self._shrinkage(inputs) @ (self.start - solution)


def _least_squares_solution(inputs: Tensor, target: Tensor) -> Tensor:
    solution: Tensor = torch.linalg.lstsq(inputs, target, driver="gelsd").solution
    return solution

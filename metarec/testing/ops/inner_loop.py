"""Samples of ``inner_loop`` with its meta-gradients, of what it keeps, and of ``inner_loop_effects``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise, product
from typing import Any, Literal

import torch
from torch import Tensor

from metarec.ops import (
    InnerHead,
    InnerSteps,
    inner_loop,
    inner_loop_effects,
    inner_loop_predict,
    inner_loop_state,
)
from metarec.testing.ops.sample import Sample, double

Order = Literal[0, 1, 2]
TOLERANCE = {torch.float32: 5e-5, torch.float64: 1e-11}
TYPES = (torch.float32, torch.float64)
ORDERS: tuple[Order, Order] = (1, 2)
RATES = ["scalar", "per step", "per layer", "rank one", "full"]

SHAPES: list[tuple[list[int], list[int], list[int]]] = [
    ([3], [2], [4]),
    ([3], [2], [4, 5]),
    ([3], [2], [4, 5, 3]),
    ([0, 2, 1, 7], [1, 3, 0, 2], [5, 6, 4]),
    ([1, 30, 2], [2, 70, 130], [9, 8, 16]),
    ([40, 3], [5, 200], [3, 17, 2]),
    ([20, 5], [3, 2], [33, 31, 8]),
    ([6, 1], [1, 1], [64, 1, 9]),
    ([200], [10], [16, 12]),
    ([2, 60], [3, 3], [7]),
]


def samples() -> Iterator[Sample]:
    """Loops of every kind, what they keep, and effects."""
    return chain(of_all_sizes(), of_each_function(), of_each_way(), of_any_steps(), kept(), effects())


def of_all_sizes() -> Iterator[Loop]:
    """Tasks and networks of all sizes, each kind of rates."""
    for shape, rates, order, dtype in product(SHAPES, RATES, ORDERS, TYPES):
        yield Loop(*shape, dtype, {"rates": rates}, order)


def of_each_function() -> Iterator[Loop]:
    """Each activation with each loss."""
    for widths, activation, loss, order, dtype in product(
        ([6, 5, 4], [6, 9]), ("relu", "gelu", "tanh"), ("squared", "logistic", "gaussian"), ORDERS, TYPES
    ):
        options = {"activation": activation, "loss": loss, "rates": "per step"}
        yield Loop([3, 0, 40], [2, 2, 3], widths, dtype, options, order)


def of_each_way() -> Iterator[Loop]:
    """Each way to step."""
    for adapt, reduction, pull, rates, order in product(
        ("all", "last"), ("mean", "sum"), (0.0, 0.7), RATES, ORDERS
    ):
        options: dict[str, Any] = {"adapt": adapt, "reduction": reduction, "pull": pull, "rates": rates}
        yield Loop([3, 1, 30], [2, 1, 3], [6, 5, 4], torch.float64, options, order)


def of_any_steps() -> Iterator[Loop]:
    """Numbers of steps, each kind of rates and a plain number."""
    for steps, rates in product((0, 1, 7), [*RATES, "number"]):
        yield Loop([3, 2], [2, 1], [6, 5, 4], torch.float64, {"steps": steps, "rates": rates}, 2)


def kept() -> Iterator[Kept]:
    """Small supports and larger ones than a layer is wide, each kind of rates."""
    for counts, rates, (adapt, pull), dtype in product(
        ([3, 0, 1], [50, 2, 9]), RATES, (("all", 0.0), ("last", 0.3), ("all", 0.3)), TYPES
    ):
        yield Kept(counts, [2, 100, 0], [6, 5, 4], dtype, {"rates": rates, "adapt": adapt, "pull": pull})


def effects() -> Iterator[Effects]:
    """Losses of one output and of two."""
    for reduction, loss, dtype in product(("mean", "sum"), ("squared", "gaussian"), TYPES):
        yield Effects(dtype, reduction, loss)


class Problem:
    """Tasks, a head and steps; `leaves` are the floating arguments, and `run` gives the predictions for some."""

    def __init__(
        self,
        counts: Sequence[int],
        queries: Sequence[int],
        widths: Sequence[int],
        *,
        steps: int = 3,
        rates: str = "scalar",
        activation: str = "tanh",
        loss: str = "squared",
        pull: float = 0.0,
        reduction: str = "mean",
        adapt: str = "all",
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype, self.steps, self.rates = dtype, steps, rates
        self.pull = pull
        self.head: dict[str, Any] = {"activation": activation, "loss": loss, "adapt": adapt}
        self.reduction: Any = reduction
        self.widths = [*widths, 2 if loss == "gaussian" else 1]
        self.support_offsets, self.query_offsets = (
            torch.tensor([0, *accumulate(sizes)]) for sizes in (counts, queries)
        )
        rows = int(self.support_offsets[-1])
        targets = self.normal(rows)
        targets = targets.sigmoid() if loss == "logistic" else targets
        self.leaves = [
            self.normal(rows, widths[0]),
            targets,
            self.normal(rows).abs() + 0.2,
            self.normal(int(self.query_offsets[-1]), widths[0]),
            *self.draw_parameters(),
            *self.draw_rates(),
        ]

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def draw_parameters(self) -> Iterator[Tensor]:
        for width, height in pairwise(self.widths):
            yield self.normal(height, width) / max(width, 1) ** 0.5
            yield self.normal(height) / 4

    def draw_rates(self) -> Iterator[Tensor]:
        layers = list(pairwise(self.widths))[-1 if self.head["adapt"] == "last" else 0 :]
        shape = {"per step": (self.steps, 1), "per layer": (len(layers),)}.get(self.rates, ())
        yield 0.2 + 0.05 * self.normal(*shape)
        for width, height in layers:
            if self.rates == "rank one":
                yield 1 + self.normal(height) / 4
                yield 1 + self.normal(width + 1) / 4
            elif self.rates == "full":
                yield 1 + self.normal(height, width) / 4
                yield 1 + self.normal(height) / 4

    def arguments(self, leaves: Sequence[Tensor]) -> tuple[tuple[Any, ...], Tensor]:
        """Arguments of :func:`metarec.ops.inner_loop`, and its weights."""
        support, targets, weights, query, *rest = leaves
        layers = len(self.widths) - 1
        head = InnerHead(_pairs(rest[: 2 * layers]), **self.head)
        factors = _pairs(rest[2 * layers + 1 :]) or None
        steps = InnerSteps(
            self.steps,
            0.2 if self.rates == "number" else rest[2 * layers],
            rank_one_rates=factors if self.rates == "rank one" else None,
            parameter_rates=factors if self.rates == "full" else None,
            pull=self.pull,
            reduction=self.reduction,
        )
        return (head, steps, support, targets, self.support_offsets, query, self.query_offsets), weights

    def run(self, leaves: Sequence[Tensor] | None = None, order: Order = 2) -> Tensor:
        arguments, weights = self.arguments(self.leaves if leaves is None else leaves)
        return inner_loop(*arguments, weights=weights, order=order)

    def double(self) -> list[Tensor]:
        return [leaf.double() for leaf in self.leaves]


def _pairs(values: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(values[::2], values[1::2], strict=True))


def by_autograd(problem: Problem, leaves: Sequence[Tensor], order: Order = 2) -> Tensor:
    """The definition, task by task, by torch's autograd alone."""
    (head, steps, support, targets, support_offsets, query, query_offsets), weights = problem.arguments(
        leaves
    )
    function = {"relu": torch.relu, "tanh": torch.tanh, "gelu": torch.nn.functional.gelu}[head.activation]
    layers = len(head.layers)
    frozen = layers - 1 if head.adapt == "last" else 0

    def outputs(parameters: Sequence[Tensor], inputs: Tensor) -> Tensor:
        for layer, (weight, bias) in enumerate(_pairs(parameters)):
            inputs = torch.nn.functional.linear(function(inputs) if layer else inputs, weight, bias)
        return inputs

    def losses(z: Tensor, y: Tensor) -> Tensor:
        if head.loss == "squared":
            return (z[:, 0] - y).square() / 2
        if head.loss == "logistic":
            return torch.nn.functional.binary_cross_entropy_with_logits(z[:, 0], y, reduction="none")
        return torch.nn.functional.gaussian_nll_loss(z[:, 0], y, z[:, 1].exp(), eps=1e-300, reduction="none")

    start = [part for pair in head.layers for part in pair]
    adapting = start[2 * frozen :]
    rates = torch.as_tensor(steps.rates, dtype=support.dtype).expand(steps.count, layers - frozen)
    factors = [torch.ones_like(part) for part in adapting]
    if steps.rank_one_rates is not None:
        factors = [f for u, v in steps.rank_one_rates for f in (torch.outer(u, v[:-1]), u * v[-1])]
    if steps.parameter_rates is not None:
        factors = [f for pair in steps.parameter_rates for f in pair]
    predictions = []
    for task in range(len(support_offsets) - 1):
        own = slice(support_offsets[task], support_offsets[task + 1])
        asked = slice(query_offsets[task], query_offsets[task + 1])
        shares = weights[own]
        if steps.reduction == "mean" and len(shares):
            shares = shares / shares.sum()
        adapted = [part if part.requires_grad else part.clone().requires_grad_() for part in adapting]
        for k in range(steps.count):
            z = outputs([*start[: 2 * frozen], *adapted], support[own])
            objective = (shares * losses(z, targets[own])).sum()
            gradients = torch.autograd.grad(
                objective, adapted, create_graph=order == 2, retain_graph=True, allow_unused=True
            )
            moved = []
            for index, (part, gradient) in enumerate(zip(adapted, gradients, strict=True)):
                distance = part - adapting[index]
                total = gradient + steps.pull * (distance if order == 2 else distance.detach())
                moved.append(part - rates[k, index // 2] * factors[index] * total)
            adapted = moved
        predictions.append(outputs([*start[: 2 * frozen], *adapted], query[asked]))
    result = torch.cat(predictions)
    return result if head.loss == "gaussian" else result[:, 0]


def gradients_of(
    function: Callable[[list[Tensor]], Tensor], leaves: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Predictions, and the gradients of a weighted sum of them."""
    copies = [leaf.clone().requires_grad_() for leaf in leaves]
    predictions = function(copies)
    weights = torch.linspace(-1, 1, predictions.numel(), dtype=predictions.dtype, device=predictions.device)
    found = torch.autograd.grad(
        (predictions * weights.view(predictions.shape)).sum(), copies, allow_unused=True
    )
    gradients = (
        torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(copies, found, strict=True)
    )
    return predictions.detach(), list(gradients)


class _OfProblem(Sample):
    """A sample whose arguments are those of a problem."""

    dtype: torch.dtype

    @abstractmethod
    def problem(self) -> Problem:
        """Draw it."""

    def arguments(self) -> list[Tensor]:
        problem = self.problem()
        return [problem.support_offsets, problem.query_offsets, *problem.leaves]

    def given(self, arguments: Sequence[Tensor]) -> Problem:
        """The problem with these arguments for its own."""
        problem = self.problem()
        problem.support_offsets, problem.query_offsets, *problem.leaves = arguments
        return problem

    def tolerance(self, name: str) -> float:
        return TOLERANCE[self.dtype]


@dataclass(frozen=True)
class _OfSizes(_OfProblem):
    """A problem of these sizes, with these options."""

    counts: list[int]
    queries: list[int]
    widths: list[int]
    dtype: torch.dtype
    options: dict[str, Any]

    def problem(self) -> Problem:
        return Problem(self.counts, self.queries, self.widths, dtype=self.dtype, **self.options)


@dataclass(frozen=True)
class Loop(_OfSizes):
    """Predictions and their gradients in all arguments, beside autograd."""

    order: Order

    def call(self, *arguments: Tensor) -> dict[str, Tensor]:
        problem = self.given(arguments)
        return _named(*gradients_of(lambda leaves: problem.run(leaves, self.order), problem.leaves))

    def expected(self, *arguments: Tensor) -> dict[str, Tensor]:
        problem = self.given(double(arguments))
        return _named(*gradients_of(lambda leaves: by_autograd(problem, leaves, self.order), problem.leaves))


def _named(predictions: Tensor, gradients: Sequence[Tensor]) -> dict[str, Tensor]:
    """Name gradients by the place of what they are of: support, targets, weights, query, layers, rates."""
    return {"predictions": predictions, **{f"gradient {i}": value for i, value in enumerate(gradients)}}


@dataclass(frozen=True)
class Kept(_OfSizes):
    """Predictions by adapted heads that were kept, beside autograd."""

    def call(self, *arguments: Tensor) -> dict[str, Tensor]:
        problem = self.given(arguments)
        (head, steps, support, targets, offsets, query, query_offsets), weights = problem.arguments(
            problem.leaves
        )
        state = inner_loop_state(head, steps, support, targets, offsets, weights=weights)
        return {"predictions": inner_loop_predict(head, state, offsets, query, query_offsets)}

    def expected(self, *arguments: Tensor) -> dict[str, Tensor]:
        problem = self.given(double(arguments))
        return {"predictions": by_autograd(problem, problem.leaves, order=1).detach()}


@dataclass(frozen=True)
class Effects(_OfProblem):
    """Effects of ratings, beside predictions by supports with and without each."""

    dtype: torch.dtype
    reduction: str
    loss: str

    @property
    def waits(self) -> bool:
        return True

    def problem(self) -> Problem:
        tasks = [3, 0, 1, 20], [2, 1, 3, 2]
        return Problem(*tasks, [6, 5, 4], reduction=self.reduction, loss=self.loss, dtype=self.dtype)

    def call(self, *arguments: Tensor) -> dict[str, Tensor]:
        problem = self.given(arguments)
        tensors, weights = problem.arguments(problem.leaves)
        return {"effects": inner_loop_effects(*tensors, weights=weights)}

    def expected(self, *arguments: Tensor) -> dict[str, Tensor]:
        problem = self.given(double(arguments))
        (head, steps, support, targets, offsets, query, query_offsets), weights = problem.arguments(
            problem.leaves
        )

        def predict(rows: Tensor, asked: Tensor) -> Tensor:
            ends = torch.tensor([0, len(rows)]), torch.tensor([0, len(asked)])
            return inner_loop(
                head,
                steps,
                support[rows],
                targets[rows],
                ends[0],
                asked,
                ends[1],
                weights=weights[rows],
                order=0,
            )

        effects = []
        for task in range(len(offsets) - 1):
            own = torch.arange(int(offsets[task]), int(offsets[task + 1]))
            asked = query[query_offsets[task] : query_offsets[task + 1]]
            effects += [predict(own, asked) - predict(own[own != row], asked) for row in own]
        return {"effects": torch.cat(effects)}

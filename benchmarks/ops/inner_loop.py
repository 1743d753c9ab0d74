"""``inner_loop`` beside a loop over tasks in Python and ``torch.func.vmap``, both by torch's autograd."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad, vmap

from benchmarks import roofline
from benchmarks.ops import Case
from benchmarks.roofline import Work
from benchmarks.timing import CPU
from metarec.ops import InnerHead, InnerSteps, inner_loop

WIDTH, HIDDEN, STEPS, RATE = 256, 64, 5, 0.01
ALIKE, RAGGED = 32, 512


def cases(device: torch.device = CPU) -> Iterator[Case]:
    """Meta-gradients of both orders, and supports of all sizes."""
    alike = Tasks([20] * ALIKE, [10] * ALIKE, device)
    yield Case(
        f"second order, {alike}, 20 + 10 ratings",
        ours=lambda: alike.by_metarec(2),
        work=alike.work(2),
        peers={"vmap(grad)": lambda: alike.by_vmap(2), "Python loop": lambda: alike.by_loop(2)},
        least_ratio={"vmap(grad)": 8, "Python loop": 40},
    )
    yield Case(
        f"first order, {alike}, 20 + 10 ratings",
        ours=lambda: alike.by_metarec(1),
        work=alike.work(1),
        peers={"vmap(grad)": lambda: alike.by_vmap(1), "Python loop": lambda: alike.by_loop(1)},
        least_ratio={"Python loop": 50},
    )
    ragged = Tasks([1 + task * 199 // (RAGGED - 1) for task in range(RAGGED)], [10] * RAGGED, device)
    yield Case(
        f"second order, {ragged}, 1 to 200 + 10 ratings",
        ours=lambda: ragged.by_metarec(2),
        work=ragged.work(2),
        peers={"padded vmap(grad)": lambda: ragged.by_vmap(2)},
        least_ratio={"padded vmap(grad)": 10},
    )


class Tasks:
    """Random tasks, and the loss of their queries with its meta-gradient by each way to compute it."""

    def __init__(self, supports: list[int], queries: list[int], device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        self.supports, self.queries = supports, queries
        self.own, self.asked = _ranges(supports), _ranges(queries)
        self.support_offsets, self.query_offsets = (
            torch.tensor([0, *accumulate(sizes)], device=device) for sizes in (supports, queries)
        )

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device)

        self.support, self.query = normal(sum(supports), WIDTH), normal(sum(queries), WIDTH)
        self.targets, self.query_targets = normal(sum(supports)), normal(sum(queries))
        self.parameters: list[Tensor] = []
        for width, height in ((WIDTH, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 1)):
            self.parameters.append(normal(height, width) / width**0.5)
            self.parameters.append(torch.zeros(height, device=device))
        for parameter in self.parameters:
            parameter.requires_grad_()

        # Padded to the largest support, with weights that leave the padding out.
        most = max(supports)
        self.padded = torch.zeros(len(supports), most, WIDTH, device=device)
        self.padded_targets, self.shares = (torch.zeros(len(supports), most, device=device) for _ in range(2))
        for task, (size, own) in enumerate(zip(supports, self.own, strict=True)):
            self.padded[task, :size] = self.support[own]
            self.padded_targets[task, :size] = self.targets[own]
            self.shares[task, :size] = 1 / size

    def __str__(self) -> str:
        return f"{WIDTH}-{HIDDEN}-{HIDDEN}-1, {len(self.supports)} tasks, {STEPS} steps"

    def work(self, order: Literal[1, 2]) -> Work:
        """Give what the predictions and the gradient of the parameters take at least."""
        sizes = self.supports, self.queries, (WIDTH, HIDDEN, HIDDEN, 1), STEPS
        return roofline.inner_loop(*sizes) + roofline.inner_loop_backward(*sizes, order=order)

    def by_metarec(self, order: Literal[1, 2]) -> tuple[Tensor, ...]:
        """One call."""
        layers = list(zip(self.parameters[::2], self.parameters[1::2], strict=True))
        predictions = inner_loop(
            InnerHead(layers),
            InnerSteps(STEPS, RATE),
            self.support,
            self.targets,
            self.support_offsets,
            self.query,
            self.query_offsets,
            order=order,
        )
        return torch.autograd.grad((predictions - self.query_targets).square().sum(), self.parameters)

    def by_loop(self, order: int) -> tuple[Tensor, ...]:
        """Task by task, as one writes it first."""
        total = self.support.new_zeros(())
        for own, asked in zip(self.own, self.asked, strict=True):
            adapted = self.parameters
            for _ in range(STEPS):
                loss = (_head(adapted, self.support[own]) - self.targets[own]).square().mean() / 2
                gradients = torch.autograd.grad(loss, adapted, create_graph=order == 2)
                adapted = [p - RATE * g for p, g in zip(adapted, gradients, strict=True)]
            errors = _head(adapted, self.query[asked]) - self.query_targets[asked]
            total = total + errors.square().sum()
        return torch.autograd.grad(total, self.parameters)

    def by_vmap(self, order: int) -> tuple[Tensor, ...]:
        """All tasks at once, padded to one size; all have as many queries."""

        def errors(x: Tensor, y: Tensor, shares: Tensor, asked: Tensor, wanted: Tensor) -> Tensor:
            def loss(parameters: list[Tensor]) -> Tensor:
                return (shares * (_head(parameters, x) - y).square()).sum() / 2

            adapted = list(self.parameters)
            for _ in range(STEPS):
                gradients = grad(loss)(adapted)
                adapted = [
                    p - RATE * (g if order == 2 else g.detach())
                    for p, g in zip(adapted, gradients, strict=True)
                ]
            return (_head(adapted, asked) - wanted).square().sum()

        tasks = len(self.supports)
        total = vmap(errors)(
            self.padded,
            self.padded_targets,
            self.shares,
            self.query.view(tasks, -1, WIDTH),
            self.query_targets.view(tasks, -1),
        ).sum()
        return torch.autograd.grad(total, self.parameters)


def _head(parameters: list[Tensor], inputs: Tensor) -> Tensor:
    for layer in range(0, len(parameters), 2):
        inputs = torch.nn.functional.linear(
            torch.relu(inputs) if layer else inputs, parameters[layer], parameters[layer + 1]
        )
    return inputs[:, 0]


def _ranges(sizes: list[int]) -> list[slice]:
    """Give the rows of each task."""
    return [slice(begin, end) for begin, end in pairwise([0, *accumulate(sizes)])]

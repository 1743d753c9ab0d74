"""iMAML beside the oracles of its family: how it solves, and what it is without solving."""

from __future__ import annotations

import torch
from torch import Tensor

from metarec.learning import Training
from metarec.plugins.algorithms.fomaml import FOMAML
from metarec.plugins.algorithms.imaml import IMAML, conjugate_gradients
from metarec.testing import AlgorithmConformance
from metarec.testing.oracles.check import tasks_of
from metarec.testing.oracles.gradient import Line

SMALL = {"size": 3, "hidden": (4,), "training": Training(epochs=1)}


class TestConformance(AlgorithmConformance):
    algorithm = IMAML
    options = SMALL


class TestConformanceWithUncertainty(AlgorithmConformance):
    algorithm = IMAML
    options = SMALL | {"uncertainty": True}


def test_without_conjugate_gradients_it_is_first_order():
    tasks = tasks_of("new-user")
    first, exact = (Line(IMAML, tasks, cg_steps=steps) for steps in (0, 50))
    plain = first.gradient()
    first.learner.trains_by, first.learner.order = "query", 1
    first.learner.network_.zero_grad()
    FOMAML.backward(first.learner, tasks)
    expected = torch.cat([part.grad.flatten() for part in first.parts])
    assert torch.allclose(plain, expected, rtol=1e-10)
    assert (exact.gradient() - plain).norm() > 0.1 * plain.norm()


def test_conjugate_gradients_solve_what_is_definite_and_stop_where_it_is_not():
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(3, 5, 5, generator=generator, dtype=torch.float64)
    matrices = factor @ factor.mT + torch.eye(5, dtype=torch.float64)
    matrices[2] = torch.diag(torch.tensor([1.0, 2.0, -3.0, 1.0, 1.0], dtype=torch.float64))
    target = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    target[2] = torch.eye(5, dtype=torch.float64)[2]

    def product(vectors: Tensor) -> Tensor:
        return (matrices @ vectors.unsqueeze(2)).squeeze(2)

    start = torch.zeros(3, 5, dtype=torch.float64)
    found = conjugate_gradients(product, target, start, 12)
    assert torch.allclose(found[:2], torch.linalg.solve(matrices[:2], target[:2]), rtol=1e-10)
    assert torch.equal(found[2], start[2])

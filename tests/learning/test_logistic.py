"""Modes and curvatures of logistic regressions, against scipy's minimiser and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from metarec.learning.logistic import logistic_posterior
from metarec.ops import GaussianPosterior


def regressions(scale: float, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Arguments for four tasks of 0, 1, 7 and 40 observations; the larger `scale`, the surer the choices."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    features, root = scale * normal(48, 3), 0.5 * normal(3, 3)
    choices = (features.sum(1) + normal(48) > 0).double()
    offsets = torch.tensor([0, 0, 1, 8, 48])
    floats = [features, choices, normal(4, 3), root @ root.T + 0.1 * torch.eye(3, dtype=torch.float64)]
    features, choices, mean, precision = (part.to(dtype) for part in floats)
    return [features, choices, offsets, mean, precision]


def objective(arguments: list[torch.Tensor], task: int):
    features, choices, offsets, mean, precision = (part.numpy() for part in arguments)
    mine = slice(*offsets[task : task + 2])

    def value(theta: np.ndarray) -> float:
        sign, away = 2 * choices[mine] - 1, theta - mean[task]
        return np.logaddexp(0, -sign * (features[mine] @ theta)).sum() + away @ precision @ away / 2

    return value


def curvature(value, theta: np.ndarray, step: float = 1e-3) -> np.ndarray:
    ways = step * np.eye(len(theta))

    def mixed(a: np.ndarray, b: np.ndarray) -> float:
        ends = ((a + b, 1), (a - b, -1), (b - a, -1), (-a - b, 1))
        return sum(sign * value(theta + end) for end, sign in ends) / (2 * step) ** 2

    return np.array([[mixed(a, b) for b in ways] for a in ways])


def found(scale: float, dtype: torch.dtype = torch.float64) -> GaussianPosterior:
    return logistic_posterior(*regressions(scale, dtype))


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_mode_and_curvature_are_those_that_scipy_finds(scale: float):
    made, arguments = found(scale), regressions(scale)
    for task, mean in enumerate(arguments[3].numpy()):
        value = objective(arguments, task)
        expected = minimize(value, mean, method="BFGS", options={"gtol": 1e-8}).x
        mode = made.mean[task].numpy()
        assert mode == pytest.approx(expected, abs=2e-5)
        assert value(mode) <= value(expected) + 1e-10
        root = made.cholesky[task].numpy()
        assert root @ root.T == pytest.approx(curvature(value, mode), rel=1e-3, abs=1e-3)


def test_a_task_without_choices_keeps_its_prior():
    made, (_, _, _, mean, precision) = found(1.0), regressions(1.0)
    assert torch.allclose(made.mean[0], mean[0], rtol=1e-12)
    assert torch.allclose(made.cholesky[0] @ made.cholesky[0].T, precision, rtol=1e-12)
    assert abs(made.log_evidence[0]) < 1e-12


@pytest.mark.parametrize("scale", [30.0, 100.0])
def test_where_newton_steps_overshoot_the_mode_is_found_all_the_same(scale: float):
    made, arguments = found(scale, torch.float32), regressions(scale)
    for task in range(4):
        value = objective(arguments, task)
        mode = made.mean[task].double().numpy()
        best = minimize(value, mode, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-9}).fun
        assert value(mode) <= best + 1e-3 * (1 + abs(best))

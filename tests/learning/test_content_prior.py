"""The content prior: its regression against a dense solution, its choices against a known law."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from metarec.data import Block, Features
from metarec.learning import content_prior, fit_content_prior

COVARIANCE = np.array([[0.5, 0.1, 0.0], [0.1, 0.3, -0.1], [0.0, -0.1, 0.4]])


def _features(matrix: np.ndarray, *widths: int) -> Features:
    """The rows of a matrix, as features of attributes of these widths."""
    row, column = np.nonzero(matrix)
    features = Features.from_entries(
        torch.from_numpy(row),
        torch.from_numpy(column),
        torch.from_numpy(matrix[row, column]),
        count=len(matrix),
        width=matrix.shape[1],
    )
    edges = np.cumsum([0, *widths])
    blocks = (Block(f"a{i}", int(a), int(b)) for i, (a, b) in enumerate(pairwise(edges)))
    return Features(features.offsets, features.columns, features.values, features.width, tuple(blocks))


def _ratings(random: np.random.Generator, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and shift of what a few noisy ratings say of each entity."""
    precision, shift = [], []
    for own in theta:
        pattern = np.column_stack([np.ones(8), random.normal(size=(8, 2))])
        target = pattern @ own + random.normal(scale=0.5, size=8)
        precision.append(4 * pattern.T @ pattern)
        shift.append(4 * pattern.T @ target)
    return np.stack(precision), np.stack(shift)


def test_regression_is_generalised_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conjugate gradients in whitened coordinates find what the dense normal equations give in plain ones."""
    monkeypatch.setattr(content_prior, "_FINE", 1e-12)
    random = np.random.default_rng(0)
    matrix, weight = random.normal(size=(40, 5)), random.random(40)
    precision, shift = _ratings(random, random.normal(size=(40, 3)))
    regression = content_prior._Regression(
        _features(matrix, 2, 3), *map(torch.from_numpy, (precision, shift, weight))
    )
    regression.whiten(torch.from_numpy(COVARIANCE))
    log_ridge = torch.tensor([[1.0, -0.5], [2.0, 0.3]], dtype=torch.float64)
    found = regression.coefficients(log_ridge).numpy()

    design = np.column_stack([matrix, np.ones(40)])
    root = np.linalg.inv(np.linalg.cholesky(COVARIANCE))
    by_column = np.exp(log_ridge.numpy())[[0, 0, 1, 1, 1]]
    ridge = np.vstack([by_column, [[content_prior._FREE] * 2]])[:, [0, 1, 1]] / 40
    total, right = np.zeros((18, 18)), np.zeros(18)
    for x, s, t, w in zip(design, precision, shift, weight, strict=True):
        gram = np.linalg.inv(COVARIANCE + np.linalg.inv(s))
        total += w * np.kron(np.outer(x, x), gram)
        right += w * np.kron(x, gram @ np.linalg.solve(s, t))
    for column in range(6):
        block = slice(3 * column, 3 * column + 3)
        total[block, block] += root.T @ np.diag(ridge[column]) @ root
    np.testing.assert_allclose(found, np.linalg.solve(total, right).reshape(6, 3), atol=1e-8)


def test_finds_what_attributes_say_and_what_they_leave_open() -> None:
    random = np.random.default_rng(1)
    telling, idle = random.integers(4, size=600), random.integers(60, size=600)
    matrix = np.hstack([np.eye(4)[telling], np.eye(60)[idle]])
    effect = random.normal(size=(4, 3))
    theta = effect[telling] + random.multivariate_normal(np.zeros(3), COVARIANCE, 600)
    precision, shift = map(torch.from_numpy, _ratings(random, theta))
    prior = fit_content_prior(
        _features(matrix, 4, 60),
        precision,
        shift,
        torch.ones(600),
        torch.eye(3),
        torch.Generator().manual_seed(0),
    )
    np.testing.assert_allclose(prior.covariance.numpy(), COVARIANCE, atol=0.1)
    mean = prior.mean(_features(np.hstack([np.eye(4), np.zeros((4, 60))]), 4, 60)).numpy()
    np.testing.assert_allclose(mean, effect, atol=0.2)
    assert prior.weight[4:].abs().mean() < 0.2 * prior.weight[:4].abs().mean()


def test_without_attributes_it_is_the_population() -> None:
    random = np.random.default_rng(2)
    theta = random.multivariate_normal([1.0, -0.5, 0.2], COVARIANCE, 500)
    precision, shift = map(torch.from_numpy, _ratings(random, theta))
    generator = torch.Generator().manual_seed(0)
    prior = fit_content_prior(Features.empty(500), precision, shift, torch.ones(500), torch.eye(3), generator)
    assert prior.weight.shape == (0, 3)
    np.testing.assert_allclose(prior.intercept.numpy(), [1.0, -0.5, 0.2], atol=0.1)
    np.testing.assert_allclose(prior.covariance.numpy(), COVARIANCE, atol=0.1)

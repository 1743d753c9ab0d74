"""What attributes say of an entity before its first rating: a Gaussian prior whose mean is linear in the features."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from metarec.data import Features

_FOLDS = 5
_HELD_OUT = 0.3
_ROUNDS = 2
_STEPS = 6
_STEP = 0.7
_START = 3.0
_FREE = 1e-6
_COARSE, _FINE = 3e-2, 1e-3
_MOST_ITERATIONS = 200


class ContentPrior(NamedTuple):
    """The prior ``θ ~ N(W f + c, Σ)`` of an entity with features f.

    Parameters
    ----------
    weight : float [width, d]
        W.
    intercept : float [d]
        c.
    covariance : float [d, d]
        Σ, of what the features leave open about a *new* entity.
    """

    weight: Tensor
    intercept: Tensor
    covariance: Tensor

    def mean(self, features: Features) -> Tensor:
        """float [N, d]: the prior mean of each entity."""
        return features.project(self.weight) + self.intercept

    def to(self, device: torch.device, dtype: torch.dtype) -> ContentPrior:
        """The same on `device`, as `dtype`."""
        return ContentPrior(*(part.to(device, dtype) for part in self))


def fit_content_prior(
    features: Features,
    precision: Tensor,
    shift: Tensor,
    weight: Tensor,
    covariance: Tensor,
    generator: torch.Generator,
) -> ContentPrior:
    r"""Fit a content prior to what the ratings of N entities say of their d parameters.

    Entity n's ratings have the likelihood :math:`\exp(-\tfrac12 \theta^\top S_n \theta + t_n^\top \theta)`. With θ
    integrated out, :math:`W` is the generalised least squares fit of :math:`S_n^{-1} t_n` to the features, each
    entity weighted by the precision :math:`G_n = (\Sigma + S_n^{-1})^{-1}` with which its ratings show the prior mean
    (so that few ratings count for little), with a ridge per attribute: :math:`w_c \sim N(0, \Sigma / \lambda_{a(c)})`,
    where the first parameter and the others have λ of their own. Solved by conjugate gradients.

    The λ are chosen by the gradient of the likelihood of entities that are held out, and Σ is the maximum-likelihood
    covariance around means that are fitted without the entity's own fold: both ask how well attributes describe an
    entity that was never seen, which is what the prior is for. In-sample estimates of either are too sure.

    Parameters
    ----------
    features : Features [N rows]
        One block of columns per attribute.
    precision : float [N, d, d]
        S.
    shift : float [N, d]
        t.
    weight : float [N]
        How much each entity counts.
    covariance : float [d, d]
        First guess at Σ.
    generator : torch.Generator
        Draws the held-out entities and the folds.

    Returns
    -------
    ContentPrior
        In float64.

    References
    ----------
    Searle, Casella, McCulloch 1992, Variance components (generalised least squares and its variances). Bengio 2000,
    Gradient-based optimization of hyperparameters.
    """
    regression = _Regression(features, precision.double(), shift.double(), weight.double() / weight.sum())
    log_ridge = torch.full((len(features.blocks), 2), _START, dtype=torch.float64)
    covariance = covariance.double()
    held_out = torch.rand(len(features), generator=generator) < _HELD_OUT
    fold = torch.randperm(len(features), generator=generator) % _FOLDS
    for _ in range(_ROUNDS):
        regression.whiten(covariance)
        log_ridge = regression.tune(log_ridge, held_out)
        left_out = regression.left_out_means(log_ridge, fold)
        covariance = regression.covariance_around(left_out, covariance)
    regression.whiten(covariance)
    coefficients = regression.coefficients(log_ridge)
    return ContentPrior(coefficients[:-1], coefficients[-1], covariance)


class _Regression:
    """Generalised least squares in the coordinates ``z = R⁻¹ θ`` of the prior's Cholesky factor, Σ = R Rᵀ.

    There the ridge is the same for all parameters but the first, the prior precision is 1, and an entity's normal
    equations are those of G and h.
    """

    def __init__(self, features: Features, precision: Tensor, shift: Tensor, weight: Tensor) -> None:
        self.precision, self.shift, self.weight = precision, shift, weight
        count, width = len(features), features.width + 1
        rows = torch.cat([features.owner, torch.arange(count)])
        columns = torch.cat([features.columns, torch.full((count,), features.width)])
        values = torch.cat([features.values.double(), torch.ones(count, dtype=torch.float64)])
        self.design = _sparse(rows, columns, values, (count, width))
        self.transposed = _sparse(columns, rows, values, (width, count))
        self.squared = _sparse(columns, rows, values.square(), (width, count))
        self.block = torch.full((width,), len(features.blocks))  # of each column; the constant's comes last
        for number, block in enumerate(features.blocks):
            self.block[block.start : block.stop] = number

    def whiten(self, covariance: Tensor) -> None:
        """Take up a new Σ."""
        self.root = torch.linalg.cholesky(covariance)
        size = covariance.shape[0]
        unit = torch.eye(size, dtype=covariance.dtype)
        inverse = torch.linalg.solve_triangular(self.root, unit, upper=False)
        posterior = spd_inverse(self.precision + inverse.mT @ inverse)
        self.gram = unit - inverse @ posterior @ inverse.mT
        self.target = (posterior @ self.shift[..., None])[..., 0] @ inverse.mT

    def tune(self, log_ridge: Tensor, held_out: Tensor) -> Tensor:
        """The best of a few steps of Adam on the held-out entities' negative log likelihood."""
        if log_ridge.shape[0] == 0:
            return log_ridge
        inside, outside = self.weight * ~held_out, self.weight * held_out
        variable = log_ridge.clone().requires_grad_()
        steps = torch.optim.Adam([variable], lr=_STEP, betas=(0.7, 0.9))
        least, best = math.inf, log_ridge
        right = self._against(inside, self.target)
        fitted = adjoint = torch.zeros_like(right)
        for _ in range(_STEPS):
            ridge = self._ridge(variable.detach())
            fitted = self._solve(right, ridge, inside, fitted, _COARSE)
            mean = self.design @ fitted
            drawn = batched_mv(self.gram, mean)
            loss = float((outside * (mean * (drawn / 2 - self.target)).sum(1)).sum())
            if loss < least:
                least, best = loss, variable.detach().clone()
            adjoint = self._solve(
                self._against(outside, drawn - self.target), ridge, inside, adjoint, _COARSE
            )
            by_column = -ridge * adjoint * fitted
            gradient = torch.zeros(log_ridge.shape[0] + 1, 2, dtype=torch.float64)
            parts = torch.stack([by_column[:, 0], by_column[:, 1:].sum(1)], 1)
            variable.grad = gradient.index_add(0, self.block, parts)[:-1]
            steps.step()
        return best

    def coefficients(self, log_ridge: Tensor) -> Tensor:
        """float64 [width + 1, d]: W and c, fitted to all entities."""
        coefficients: Tensor = self._fit(log_ridge, self.weight) @ self.root.mT
        return coefficients

    def left_out_means(self, log_ridge: Tensor, fold: Tensor) -> Tensor:
        """float64 [N, d]: each entity's prior mean, fitted to the other folds."""
        start = self._fit(log_ridge, self.weight)
        means = torch.zeros_like(self.shift)
        for number in range(_FOLDS):
            out = fold == number
            means[out] = (self.design @ self._fit(log_ridge, self.weight * ~out, start))[out]
        original: Tensor = means @ self.root.mT
        return original

    def covariance_around(self, means: Tensor, covariance: Tensor) -> Tensor:
        """A few steps of EM for Σ."""
        for _ in range(_FOLDS):
            inverse = spd_inverse(covariance)
            posterior = spd_inverse(self.precision + inverse)
            away = batched_mv(posterior, means @ inverse + self.shift) - means
            spread = (self.weight[:, None, None] * posterior).sum(0)
            covariance = spread + away.mT @ (self.weight[:, None] * away)
        return covariance

    def _fit(self, log_ridge: Tensor, weight: Tensor, start: Tensor | None = None) -> Tensor:
        right = self._against(weight, self.target)
        start = torch.zeros_like(right) if start is None else start
        return self._solve(right, self._ridge(log_ridge), weight, start, _FINE)

    def _ridge(self, log_ridge: Tensor) -> Tensor:
        """float64 [width + 1, d]: λ of each coefficient, in units of one entity of average weight."""
        size = self.shift.shape[1]
        by_block = torch.cat([log_ridge.exp(), log_ridge.new_full((1, 2), _FREE)]) / self.weight.numel()
        return by_block[self.block].repeat_interleave(torch.tensor([1, size - 1]), 1)

    def _against(self, weight: Tensor, values: Tensor) -> Tensor:
        return self.transposed @ (weight[:, None] * values)

    def _solve(self, right: Tensor, ridge: Tensor, weight: Tensor, start: Tensor, tolerance: float) -> Tensor:
        """Conjugate gradients with Jacobi's preconditioner."""

        def times(coefficients: Tensor) -> Tensor:
            drawn = batched_mv(self.gram, self.design @ coefficients)
            return self._against(weight, drawn) + ridge * coefficients

        diagonal = self.squared @ (weight[:, None] * self.gram.diagonal(dim1=1, dim2=2)) + ridge
        solution, residual = start, right - times(start)
        direction = scaled = residual / diagonal
        size, goal = (residual * scaled).sum(), tolerance**2 * (right.square() / diagonal).sum()
        for _ in range(_MOST_ITERATIONS):
            if size <= goal:
                break
            pushed = times(direction)
            step = size / (direction * pushed).sum()
            solution, residual = solution + step * direction, residual - step * pushed
            scaled = residual / diagonal
            before, size = size, (residual * scaled).sum()
            direction = scaled + size / before * direction
        return solution


def _sparse(rows: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    """A matrix in compressed rows: in float64 its product takes a quarter of the time of `Features.project`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse", UserWarning)  # torch calls the layout a beta
        matrix = torch.sparse_coo_tensor(torch.stack([rows, columns]), values, size, check_invariants=False)
        return matrix.coalesce().to_sparse_csr()


def spd_inverse(matrices: Tensor) -> Tensor:
    """The inverses of symmetric positive definite matrices [..., d, d]."""
    return torch.cholesky_inverse(torch.linalg.cholesky(matrices))


def batched_mv(matrices: Tensor, vectors: Tensor) -> Tensor:
    """The product of each matrix [N, d, d] with its vector [N, d]."""
    return torch.bmm(matrices, vectors[..., None])[..., 0]

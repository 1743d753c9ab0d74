"""Logistic regressions of many tasks at once: modes, curvatures, and the evidence by Laplace's approximation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from metarec.ops import GaussianPosterior, gaussian_posterior
from metarec.tasks import Ragged

STEPS, HALVINGS = 100, 60
LEAST_WEIGHT = 1e-12


def logistic_posterior(
    features: Tensor, choices: Tensor, offsets: Tensor, prior_mean: Tensor, prior_precision: Tensor
) -> GaussianPosterior:
    """As `gaussian_posterior`, where a task's weights θ give the log odds ``φᵀθ`` of each choice.

        θ* = argmax Σ_j log p(y_j|θ) + log N(θ; m, P⁻¹),   Λ = P + Σ_j p_j (1 − p_j) φ_j φ_jᵀ,
        log p(y) ≈ Σ_j log p(y_j|θ*) − ½ (θ* − m)ᵀP(θ* − m) + ½ log|P| − ½ log|Λ|.

    Parameters
    ----------
    features : float [n, r]
        φ of all observations.
    choices : float [n]
        y, 0 or 1.
    offsets : int64 [T + 1]
        First observation of each task and, last, n.
    prior_mean : float [T, r]
    prior_precision : float [r, r] or [T, r, r]

    Returns
    -------
    GaussianPosterior
        ``mean [T, r]``, the mode θ*; ``cholesky [T, r, r]``, of Λ; ``log_evidence [T]``, Laplace's approximation.

    Notes
    -----
    The mode is found without gradients. A Newton step from there stays, and its derivative is that of the mode by the
    implicit function theorem; one more gives the same for the curvature. A Newton step is one weighted least squares:
    `gaussian_posterior` with weights ``w = p(1 − p)`` and targets ``φᵀθ + (y − p)/w``.

    References
    ----------
    Bishop 2006. Pattern recognition and machine learning, sections 4.3.3 and 4.5.1.
    """
    lists = Ragged(offsets, torch.arange(len(features), device=offsets.device))
    tasks = _Regressions(features, choices, lists, prior_mean, prior_precision)
    heads = tasks.mode()
    made = tasks.step(tasks.step(heads).mean)
    log_root = made.cholesky.diagonal(dim1=1, dim2=2).log().sum(1)
    before = torch.linalg.cholesky(prior_precision).diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return GaussianPosterior(made.mean, made.cholesky, tasks.log_posterior(made.mean) + before - log_root)


def touching(odds: Tensor, choices: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """The parabola that touches the log likelihood of choices (0 or 1) at their log odds: its top and its curvature.

    Parameters
    ----------
    odds, choices : float [n]
    least : float
        The least curvature: that of a choice that is as good as certain stays above it.

    Returns
    -------
    tuple of Tensor
        How far the top is from `odds`, ``(y − p) / w``, and the curvature ``w = p (1 − p)``, float [n] each.
    """
    weight = (odds.sigmoid() * (-odds).sigmoid()).clamp(min=least)
    return (choices - odds.sigmoid()) / weight, weight


@dataclass(frozen=True)
class _Regressions:
    features: Tensor
    choices: Tensor
    lists: Ragged
    prior_mean: Tensor
    prior_precision: Tensor

    @torch.no_grad()
    def mode(self) -> Tensor:
        """Where the log posterior is highest: from the prior's mean by Newton steps, each halved until it rises.

        They lead upwards, as the curvature is positive, and near the mode each doubles the number of right digits.
        """
        heads, enough = self.prior_mean, torch.finfo(self.prior_mean.dtype).eps ** 0.5
        for _ in range(STEPS):
            way = self._rising(heads, self.step(heads).mean - heads)
            heads = heads + way
            if (way.abs() <= enough * (1 + heads.abs())).all():
                break
        return heads

    def _rising(self, heads: Tensor, way: Tensor) -> Tensor:
        before = self.log_posterior(heads)
        for _ in range(HALVINGS):
            rises = self.log_posterior(heads + way) >= before
            if rises.all():
                break
            way = torch.where(rises.unsqueeze(1), way, way / 2)
        return way

    def step(self, heads: Tensor) -> GaussianPosterior:
        """The Gaussian whose log density has the gradient and the curvature of the log posterior at `heads`."""
        odds = self.odds(heads)
        # Whatever the weight, the mode is where a step stays: so a least one does no harm.
        surprise, weight = touching(odds, self.choices, LEAST_WEIGHT)
        return gaussian_posterior(
            self.features, odds + surprise, weight, self.lists.offsets, self.prior_mean, self.prior_precision
        )

    def log_posterior(self, heads: Tensor) -> Tensor:
        """float [T]: of `heads`, less ``½ log|P/2π|`` and the evidence."""
        odds = self.odds(heads)
        density = self.choices * logsigmoid(odds) + (1 - self.choices) * logsigmoid(-odds)
        away = heads - self.prior_mean
        pulled = (self.prior_precision @ away.unsqueeze(2)).squeeze(2)
        return self.lists.sum(density) - (away * pulled).sum(1) / 2

    def odds(self, heads: Tensor) -> Tensor:
        """float [n]: log odds of each choice."""
        return (heads.index_select(0, self.lists.owner) * self.features).sum(1)

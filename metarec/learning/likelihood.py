"""The likelihood of a linear Gaussian head, as a function of the head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from metarec.learning.algorithm import Adapted
from metarec.ops import gaussian_posterior


@dataclass(frozen=True)
class Likelihood(Adapted):
    """Log density of each task's support, given its head: ``constant + shiftᵀz − ½ zᵀ precision z``.

    z is the head in units of its prior: with P = RRᵀ the prior's precision and m its mean, ``z = Rᵀ(θ − m)``, so that
    z ~ N(0, I) before the first rating.

    Parameters
    ----------
    precision : float [T, r, r]
    shift : float [T, r]
    constant : float [T]
    """

    precision: Tensor
    shift: Tensor
    constant: Tensor

    @classmethod
    def of(cls, features: Tensor, target: Tensor, noise: Tensor, offsets: Tensor) -> Self:
        """Of ratings ``target = features · z + N(0, noise)``; differentiable.

        Its sums are what an exact posterior with the prior N(0, I) has beside that prior.

        Parameters
        ----------
        features : float [n, r]
        target, noise : float [n]
        offsets : int64 [T + 1]
            The ratings of each task.
        """
        one = features.new_ones(features.shape[1]).diag()
        made = gaussian_posterior(features, target, 1 / noise, offsets, torch.zeros_like(one[0]), one)
        precision = made.cholesky @ made.cholesky.mT
        shift = (precision @ made.mean.unsqueeze(2)).squeeze(2)
        log_root = made.cholesky.diagonal(dim1=1, dim2=2).log().sum(1)
        constant = made.log_evidence + log_root - (shift * made.mean).sum(1) / 2
        return cls(precision - one, shift, constant)

    def __call__(self, points: Tensor) -> Tensor:
        """float [T, s], at `points` (float [s, r] for all tasks, or [T, s, r])."""
        square = (points @ self.precision * points).sum(2)
        linear = (points @ self.shift.unsqueeze(2)).squeeze(2)
        return self.constant.unsqueeze(1) + linear - square / 2

    def gradient(self, points: Tensor) -> Tensor:
        """float [T, s, r]: its gradient in z."""
        return self.shift.unsqueeze(1) - points @ self.precision

    def mean_field(self, steps: int) -> tuple[Tensor, Tensor]:
        """Mean and variance, float [T, r] each, of a Gaussian without correlations that starts at the prior, N(0, I).

        With ``Λ = precision + I`` its best variances are ``1/Λᵢᵢ``, and are the metric in which the mean climbs.
        """
        variance = 1 / (1 + self.precision.diagonal(dim1=1, dim2=2))
        return self.climbed(torch.zeros_like(variance), lambda slope: variance * slope, steps), variance

    def climbed(self, start: Tensor, metric: Callable[[Tensor], Tensor], steps: int) -> Tensor:
        """Where steps up ``log p(S|z) + log N(z; 0, I)`` lead, float [T, r].

        Parameters
        ----------
        start : float [T, r]
        metric : function of float [T, r] to float [T, r]
            The way to take, of the gradient; symmetric and positive. Each step goes as far as it gains the most.
        steps : int
        """
        mean = start
        slope = self.shift - start - (self.precision @ start.unsqueeze(2)).squeeze(2)
        for _ in range(steps):
            way = metric(slope)
            bend = way + (self.precision @ way.unsqueeze(2)).squeeze(2)
            length = (way * slope).sum(1) / (way * bend).sum(1).clamp(min=1e-30)
            mean, slope = mean + length.unsqueeze(1) * way, slope - length.unsqueeze(1) * bend
        return mean

    def plus(self, other: Likelihood, times: float | Tensor = 1.0) -> Likelihood:
        """That of both supports, the other counted `times` (a number, or float [T])."""
        times = torch.as_tensor(times, dtype=self.shift.dtype, device=self.shift.device)
        return Likelihood(
            self.precision + times.view(-1, 1, 1) * other.precision,
            self.shift + times.view(-1, 1) * other.shift,
            self.constant + times * other.constant,
        )

"""The likelihood of a linear Gaussian head, as a function of the head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metarec.learning.algorithm import Adapted


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

    def __call__(self, points: Tensor) -> Tensor:
        """float [T, s], at `points` (float [s, r] for all tasks, or [T, s, r])."""
        square = (points @ self.precision * points).sum(2)
        linear = (points @ self.shift.unsqueeze(2)).squeeze(2)
        return self.constant.unsqueeze(1) + linear - square / 2

    def gradient(self, points: Tensor) -> Tensor:
        """float [T, s, r]: its gradient in z."""
        return self.shift.unsqueeze(1) - points @ self.precision

    def plus(self, other: Likelihood, times: float | Tensor = 1.0) -> Likelihood:
        """That of both supports, the other counted `times` (a number, or float [T])."""
        times = torch.as_tensor(times, dtype=self.shift.dtype, device=self.shift.device)
        return Likelihood(
            self.precision + times.view(-1, 1, 1) * other.precision,
            self.shift + times.view(-1, 1) * other.shift,
            self.constant + times * other.constant,
        )

"""BMAML: particles of each task's head that Stein's variational gradient moves to the posterior."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from metarec import Algorithm, Range, Tasks, hookimpl
from metarec.errors import ConfigError
from metarec.learning import Draws, Likelihood, SamplingLearner, Sizes, Training
from metarec.testing.oracles import stein
from metarec.testing.oracles.check import Check

STEP = 0.5


class BMAML(SamplingLearner):
    """Particles of each task's head that Stein's variational gradient moves from the prior to the posterior.

        z_i ← z_i + ½ Λ⁻¹ · 1/N Σ_j [k(z_j, z_i) ∇log p(z_j|S) + ∇_{z_j} k(z_j, z_i)]

    with z the head in units of its prior, Λ the curvature of the log posterior for a metric, and the linear kernel
    ``k(x, y) = 1 + (x − z̄)ᵀC⁻¹(y − z̄)``, which the particles' own mean z̄ and covariance C standardise. With more
    particles than numbers in a head, all stand still only where z̄ and C are the posterior's mean and covariance. They
    begin at draws of the prior that are shifted and stretched to the mean 0 and the covariance I. As the log posterior
    is quadratic, a step is one affine map for all of them: so the map is what is moved. The step of ½ halves the
    distance of the mean, and doubles the right digits of the covariance once that is near.

    The weights minimise ``−log 1/N Σ_i p(r*|θ_i)`` through the steps.

    Parameters
    ----------
    draws : int, default 64
        Particles N, more than `rank`.
    inner_steps : int, default 12
        Steps.
    training : Training
        How the weights are trained, by default for 10 epochs.

    References
    ----------
    Yoon, Kim, Dia, Kim, Bengio, Ahn 2018. Bayesian model-agnostic meta-learning, section 3. Liu, Wang 2018. Stein
    variational gradient descent as moment matching, section 3. Wang, Tang, Bajaj, Liu 2019. Stein variational gradient
    descent with matrix-valued kernels, for the metric.
    """

    name = "bmaml"
    feedback = ("explicit",)
    figures: ClassVar[tuple[str, ...]] = ("untrusted", "way_left")

    def __init__(
        self,
        *,
        draws: Annotated[int, Range(16, 1_000_000, log=True)] = 64,
        inner_steps: Annotated[int, Range(0, 1000)] = 12,
        training: Training = Training(epochs=10),
        **options: Any,
    ) -> None:
        super().__init__(draws=draws, training=training, **options)
        self.inner_steps = inner_steps

    def build(self, sizes: Sizes) -> nn.Module:
        """The heads, and where the particles start; ConfigError where these are too few."""
        if self.draws <= self.rank:
            raise ConfigError(f"{self.name}: draws is {self.draws}, expected more than rank, {self.rank}")
        return super().build(sizes)

    def drawn(self, likelihood: Likelihood, count: Tensor) -> Draws:
        """The particles after their steps; "way_left" is how far their moments are to go, in units of the posterior."""
        one = likelihood.shift.new_ones(self.rank).diag()
        root = torch.linalg.cholesky(likelihood.precision + one)
        optimum = torch.cholesky_solve(likelihood.shift.unsqueeze(2), root)
        mean, factor = torch.zeros_like(optimum), one.expand_as(root)
        for _ in range(self.inner_steps):
            # For particles z̄ + Fx with C = FFᵀ the direction is Λ⁻¹(b − Λz̄) in z̄ and Λ⁻¹(C⁻¹ − Λ)F in F.
            stretched = torch.cholesky_solve(torch.linalg.inv(factor).mT, root)
            mean, factor = mean.lerp(optimum, STEP), factor.lerp(stretched, STEP)
        points = mean.mT + moment_matched(self.points) @ factor.mT
        log_weight = points.new_zeros(points.shape[:2]).log_softmax(1)
        spread = root.mT @ factor
        left = (
            torch.cat([root.mT @ (optimum - mean), spread @ spread.mT - one], 2).detach().abs().amax((1, 2))
        )
        return Draws(points, log_weight, torch.stack([(left > 0.1).to(left.dtype), left], 1))

    def loss(self, tasks: Tasks) -> Tensor:
        """Mean negative log of the particles' mean density of a query rating."""
        sample, query = self.sample(tasks.support), tasks.query
        features, noise = self.features(tasks.support.side, query, query.partners)
        mean = (sample.heads.index_select(0, query.owner) @ features.unsqueeze(2)).squeeze(2)
        square = (self.standardised(tasks.rating).unsqueeze(1) - mean).square() / noise.unsqueeze(1)
        density = (-square / 2).logsumexp(1) - math.log(self.draws) - (2 * math.pi * noise).log() / 2
        return -density.mean()

    @classmethod
    def oracles(cls) -> Iterator[Check]:
        """Stein's steps written out, and where they end."""
        return stein.checks(cls)


def moment_matched(points: Tensor) -> Tensor:
    """`points` (float [s, r]) shifted and stretched to the mean 0 and the covariance (of division by s) I."""
    away = points - points.mean(0)
    root = torch.linalg.cholesky(away.mT @ away / len(away))
    matched: Tensor = torch.linalg.solve_triangular(root.mT, away, upper=True, left=False)
    return matched


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `BMAML`."""
    register(BMAML)

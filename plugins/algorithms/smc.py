"""Sequential Monte Carlo from the prior to the posterior of each task's head."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from metarec import Algorithm, Range, hookimpl
from metarec.learning import Draws, Likelihood, SamplingLearner
from metarec.learning.diagnostics import effective_draws

HALVINGS = 30


class SMC(SamplingLearner):
    """Particles of the prior that take the support in by degrees: reweighted, resampled, moved.

    With z_s the draws of a task's head and γ how much of its support has been taken in, from 0 to 1:

    - γ rises as far as leaves half of the particles effective, ``1/Σ w² ≥ s/2``, with weights ∝ p(S|z)^Δγ;
    - where that is not all, the particles are resampled (systematically) by their weights, and each is moved by a
      Metropolis step to the same target, its proposal the Gaussian with the particles' mean and covariance.

    The product of the mean weights estimates the support's density. The support is taken in at once rather than rating
    by rating, so that its order does not matter; a rating that is absorbed or forgotten changes r² + r sums, and the
    particles pass from the prior to what those now say.

    Parameters
    ----------
    draws : int, default 512
        Particles s of a task.

    References
    ----------
    Chopin 2002, A sequential particle filter method for static models. Del Moral, Doucet, Jasra 2006, Sequential Monte
    Carlo samplers.
    """

    name = "smc"
    feedback = ("explicit",)
    figures: ClassVar[tuple[str, ...]] = ("untrusted", "effective_draws", "log_evidence", "accepted")

    def __init__(
        self, *, draws: Annotated[int, Range(64, 1_000_000, log=True)] = 512, **options: Any
    ) -> None:
        super().__init__(draws=draws, **options)

    def drawn(self, likelihood: Likelihood, count: Tensor) -> Draws:
        """The particles where they have taken in everything; those of tasks that have are left alone."""
        tasks = len(count)
        points = self.points.repeat(tasks, 1, 1)
        log_weight = points.new_full((tasks, self.draws), -math.log(self.draws))
        reached, log_evidence = points.new_zeros(tasks), points.new_zeros(tasks)
        accepted = points.new_ones(tasks)
        generator = torch.Generator().manual_seed(self.seed_)
        todo = torch.arange(tasks, device=points.device)
        while todo.numel():
            its, at, before = likelihood.select(todo), points[todo], log_weight[todo]
            gain = its(at)
            step = _step(before, gain, 1 - reached[todo])
            weight = before + step.unsqueeze(1) * gain
            log_evidence[todo] += weight.logsumexp(1)
            log_weight[todo] = weight = weight.log_softmax(1)
            reached[todo] += step
            left = reached[todo] < 1
            todo = todo[left]
            if todo.numel():
                target = its.select(left.nonzero().squeeze(1))
                moved, share = rejuvenated(at[left], weight[left], target, reached[todo], generator)
                points[todo], accepted[todo] = moved, torch.minimum(accepted[todo], share)
                log_weight[todo] = -math.log(self.draws)
        untrusted = (accepted < 0.1).to(points.dtype)
        figures = [untrusted, effective_draws(log_weight), log_evidence, accepted]
        return Draws(points, log_weight, torch.stack(figures, 1))


def _step(log_weight: Tensor, gain: Tensor, rest: Tensor) -> Tensor:
    """How much further, float [T], at most `rest`, leaves half of the draws effective."""
    enough = log_weight.shape[1] / 2

    def keeps(step: Tensor) -> Tensor:
        return effective_draws((log_weight + step.unsqueeze(1) * gain).log_softmax(1)) >= enough

    low, high = torch.zeros_like(rest), rest
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        right = keeps(middle)
        low, high = torch.where(right, middle, low), torch.where(right, high, middle)
    return torch.where(keeps(rest), rest, low)


def rejuvenated(
    points: Tensor, log_weight: Tensor, likelihood: Likelihood, reached: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Particles resampled by their weights and moved, float [T, s, r], and the share that accepted, float [T].

    Parameters
    ----------
    points : float [T, s, r]
    log_weight : float [T, s]
    likelihood : Likelihood
    reached : float [T]
        γ: the target is ``N(z; 0, I) p(S|z)^γ``.
    generator : Generator
        All tasks share its numbers; on the CPU, so that they are the same on every device.
    """
    size, rank = points.shape[1:]
    dtype, device = points.dtype, points.device
    drawn = (
        torch.randn(size, rank, dtype=dtype, generator=generator),
        torch.rand(2, size, dtype=dtype, generator=generator),
    )
    noise, (lot, uniform) = (one.to(device, non_blocking=True) for one in drawn)
    weight = log_weight.exp()
    mean = (weight.unsqueeze(1) @ points).squeeze(1)
    away = points - mean.unsqueeze(1)
    covariance = away.mT @ (weight.unsqueeze(2) * away) + points.new_full((rank,), 1e-6).diag()
    factor = torch.linalg.cholesky(covariance)
    place = (torch.arange(size, dtype=dtype, device=device) + uniform[0]) / size
    chosen = torch.searchsorted(weight.cumsum(1), place.expand_as(weight).contiguous()).clamp(max=size - 1)
    before = points.gather(1, chosen.unsqueeze(2).expand_as(points))
    proposed = mean.unsqueeze(1) + noise @ factor.mT

    def surplus(at: Tensor) -> Tensor:
        """Log of the target over the proposal's density."""
        apart = (at - mean.unsqueeze(1)).mT
        scaled: Tensor = torch.linalg.solve_triangular(factor, apart, upper=False)
        inside = scaled.square().sum(1) - at.square().sum(2)
        return reached.unsqueeze(1) * likelihood(at) + inside / 2

    accepts = lot.log() < surplus(proposed) - surplus(before)
    moved = torch.where(accepts.unsqueeze(2), proposed, before)
    return moved, accepts.to(points.dtype).mean(1)


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `SMC`."""
    register(SMC)

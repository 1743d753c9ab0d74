"""Langevin chains to the posterior of each task's head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from metarec import Algorithm, Range, hookimpl
from metarec.learning import Draws, Likelihood, SamplingLearner
from metarec.learning.diagnostics import split_r_hat


class Langevin(SamplingLearner):
    """Chains that drift up the log posterior of each task's head and are shaken as much as keeps them there.

        z ← z + ε/2 Λ⁻¹ ∇ log p(z|S) + √ε ξ,   ξ ~ N(0, Λ⁻¹)

    Λ, the curvature of the log posterior, is the metric: without it the directions that the support says nothing of
    take as many more moves as the others are narrower. The chains of all tasks move together, from draws of the prior.
    The unadjusted chain is that of stochastic gradient Langevin dynamics with the whole support for its batch; it
    settles in N(mean, Λ⁻¹/(1 − ε/4)), too wide. "mala" accepts or rejects each move, and settles in the posterior.

    Parameters
    ----------
    draws : int, default 1024
        Draws of a head: the last states of all chains.
    chains : int, default 4
        Chains of a task.
    warm_up : int, default 100
        States of each chain that are left out before.
    kernel : "mala" or "unadjusted", default "mala"
        Whether a move may be rejected, so that the chain is exact in the limit, or never is.
    step : float, default 1
        ε; the unadjusted chain runs away from 4 on.

    References
    ----------
    Roberts, Tweedie 1996, Exponential convergence of Langevin distributions and their discrete approximations. Welling,
    Teh 2011, Bayesian learning via stochastic gradient Langevin dynamics. Girolami, Calderhead 2011, Riemann manifold
    Langevin and Hamiltonian Monte Carlo methods, section 5.
    """

    name = "langevin"
    feedback = ("explicit",)
    figures: ClassVar[tuple[str, ...]] = ("untrusted", "r_hat")

    def __init__(
        self,
        *,
        draws: Annotated[int, Range(16, 1_000_000, log=True)] = 1024,
        chains: Annotated[int, Range(1, 1024)] = 4,
        warm_up: Annotated[int, Range(0, 100_000)] = 100,
        kernel: Literal["mala", "unadjusted"] = "mala",
        step: Annotated[float, Range(1e-4, 3.9, log=True)] = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(draws=draws, **options)
        self.chains = chains
        self.warm_up = warm_up
        self.kernel = kernel
        self.step = step

    def drawn(self, likelihood: Likelihood, count: Tensor) -> Draws:
        """The last states of the chains."""
        metric = likelihood.shift.new_ones(self.rank).diag()
        factor = torch.linalg.cholesky(likelihood.precision + metric)
        shift = torch.linalg.solve_triangular(factor, likelihood.shift.unsqueeze(2), upper=False).squeeze(2)
        moves = max(4, self.draws // self.chains)
        states = langevin_chains(
            metric.expand_as(factor),
            shift,
            shift.new_full((len(shift),), self.step),
            self.points[: self.chains] @ factor,
            moves=self.warm_up + moves,
            adjusted=self.kernel == "mala",
            generator=torch.Generator().manual_seed(self.seed_),
        )[self.warm_up :]
        r_hat = split_r_hat(states)
        # Λ = LLᵀ, and the chains are of Lᵀz.
        away = states.movedim(0, 1).flatten(1, 2)
        points = torch.linalg.solve_triangular(factor, away, upper=False, left=False)
        log_weight = points.new_zeros(points.shape[:2]).log_softmax(1)
        return Draws(points, log_weight, torch.stack([(r_hat > 1.1).to(r_hat.dtype), r_hat], 1))


def langevin_chains(
    precision: Tensor,
    shift: Tensor,
    rate: Tensor,
    start: Tensor,
    *,
    moves: int,
    adjusted: bool,
    generator: torch.Generator,
) -> Tensor:
    """States of Langevin chains to N(Λ⁻¹b, Λ⁻¹) of each task, float [moves, T, c, r].

    All tasks are shaken by the same random numbers, so that none hangs on those beside it.

    Parameters
    ----------
    precision : float [T, r, r]
        Λ.
    shift : float [T, r]
        b.
    rate : float [T]
        ε.
    start : float [T, c, r]
    moves : int
    adjusted : bool
        Whether moves are accepted or rejected.
    generator : Generator
        On the CPU, so that a task has the same answer on every device.
    """
    states, state, rate = [], start, rate.view(-1, 1, 1)

    def fresh(draw: Callable[..., Tensor], *shape: int) -> Tensor:
        return draw(shape, dtype=start.dtype, generator=generator).to(start.device, non_blocking=True)

    def slope(at: Tensor) -> Tensor:
        return shift.unsqueeze(1) - at @ precision

    gradient = slope(state)
    for _ in range(moves):
        noise = fresh(torch.randn, *start.shape[1:])
        moved = state + rate / 2 * gradient + rate.sqrt() * noise
        ahead = slope(moved)
        if adjusted:
            # log p(z') − log p(z) = (z' − z)ᵀ(∇ + ∇')/2, as log p is quadratic; q's exponents are −|·|²/2ε.
            way = moved - state
            back = (way + rate / 2 * ahead).square() / (2 * rate)
            gain = (way * (gradient + ahead) / 2 - back).sum(2) + noise.square().sum(1) / 2
            lot = fresh(torch.rand, start.shape[1])
            accepted = (lot.log() < gain).unsqueeze(2)
            moved, ahead = torch.where(accepted, moved, state), torch.where(accepted, ahead, gradient)
        state, gradient = moved, ahead
        states.append(state)
    return torch.stack(states)


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `Langevin`."""
    register(Langevin)

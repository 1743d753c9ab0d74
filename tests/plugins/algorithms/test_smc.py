"""Particles against a posterior in closed form, far from the prior."""

from __future__ import annotations

import math

import torch

from metarec.learning import Likelihood, Training
from metarec.plugins.algorithms.smc import SMC
from metarec.testing import AlgorithmConformance

SMALL = {"size": 4, "rank": 3, "training": Training(epochs=2)}


class TestConformance(AlgorithmConformance):
    algorithm = SMC
    options = SMALL
    tolerance = 0.02  # in float32 rounding decides a few moves, and a draw more or less moves a mean so far


def narrow(tasks: int) -> Likelihood:
    """Far from the prior, and a hundred times as narrow."""
    precision = 1e4 * torch.eye(2, dtype=torch.float64).expand(tasks, -1, -1)
    centre = torch.linspace(-2, 2, 2 * tasks, dtype=torch.float64).view(tasks, 2)
    return Likelihood(precision, 1e4 * centre, -5e3 * centre.square().sum(1))


def made(draws: int) -> SMC:
    made = SMC(rank=2, draws=draws)
    made.seed_, made.network_ = 0, torch.nn.Module()
    made.network_.points = torch.randn(draws, 2, generator=torch.Generator().manual_seed(0)).double()
    return made


def test_it_finds_a_posterior_that_no_draw_of_the_prior_hits():
    likelihood = narrow(3)
    draws = made(20_000).drawn(likelihood, torch.ones(3))
    weight = draws.log_weight.exp().unsqueeze(2)
    mean = (weight * draws.points).sum(1)
    variance = (weight * (draws.points - mean.unsqueeze(1)).square()).sum(1)
    assert torch.allclose(mean, likelihood.shift / 10_001, atol=5e-4)
    assert torch.allclose(variance, torch.full_like(variance, 1 / 10_001), rtol=0.05)
    # ∫ N(z; 0, I) exp(c + bᵀz − ½ zᵀAz) dz
    evidence = likelihood.constant + likelihood.shift.square().sum(1) / 10_001 / 2 - math.log(10_001)
    assert torch.allclose(draws.figures[:, 2], evidence, atol=0.1)


def test_half_of_the_particles_stay_effective_and_most_moves_are_accepted():
    draws = made(1000).drawn(narrow(3), torch.ones(3))
    assert (draws.figures[:, 1] >= 500).all()
    assert (draws.figures[:, 3] > 0.5).all()


def test_a_task_is_the_same_alone_and_among_others():
    together = made(500).drawn(narrow(3), torch.ones(3)).points
    for task in range(3):
        alone = made(500).drawn(narrow(3).select(torch.tensor([task])), torch.ones(1)).points
        assert torch.allclose(alone[0], together[task], atol=1e-12)

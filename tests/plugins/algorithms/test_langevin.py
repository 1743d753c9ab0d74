"""Langevin chains against the laws in which they settle."""

from __future__ import annotations

import pytest
import torch

from metarec.learning import Likelihood, Training
from metarec.plugins.algorithms.langevin import Langevin, langevin_chains
from metarec.testing import AlgorithmConformance

SMALL = {"size": 4, "rank": 3, "training": Training(epochs=2)}


class TestConformance(AlgorithmConformance):
    algorithm = Langevin
    options = SMALL
    tolerance = 0.02  # in float32 rounding decides a few moves, and a draw more or less moves a mean so far


@pytest.mark.parametrize("adjusted", [False, True])
def test_the_chain_settles_where_theory_says(adjusted: bool):
    """In N(Λ⁻¹b, (Λ − εΛ²/4)⁻¹) unadjusted, in N(Λ⁻¹b, Λ⁻¹) with rejections."""
    precision = torch.tensor([[3.0, 1.0], [1.0, 1.5]], dtype=torch.float64)
    shift, rate = torch.tensor([1.0, -2.0], dtype=torch.float64), 0.7
    states = langevin_chains(
        precision[None],
        shift[None],
        torch.tensor([rate], dtype=torch.float64),
        torch.zeros(1, 20_000, 2, dtype=torch.float64),
        moves=60,
        adjusted=adjusted,
        generator=torch.Generator().manual_seed(0),
    )[40:].flatten(0, 2)
    bias = 0 if adjusted else rate / 4
    expected = torch.linalg.inv(precision - bias * precision @ precision)
    assert torch.allclose(states.T.cov(), expected, atol=0.015)
    assert torch.allclose(states.mean(0), torch.linalg.solve(precision, shift), atol=0.015)


def test_the_unadjusted_kernel_is_too_wide_by_as_much():
    """In the metric Λ: variance ``1/Λ(1 − step/4)``."""
    made = Langevin(size=4, rank=2, draws=40_000, chains=1000, kernel="unadjusted", step=1.5)
    made.seed_, made.network_ = 0, torch.nn.Module()
    made.network_.points = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)).double()
    precision = torch.diag(torch.tensor([4.0, 0.5]).double())[None]
    draws = made.drawn(
        Likelihood(precision, torch.zeros(1, 2).double(), torch.zeros(1).double()), torch.ones(1)
    )
    expected = 1 / (torch.tensor([5.0, 1.5]).double() * (1 - 1.5 / 4))
    assert torch.allclose(draws.points[0].var(0), expected, rtol=0.04)


def test_chains_too_short_to_meet_are_not_trusted():
    made = Langevin(rank=2, draws=32, chains=8, warm_up=0, step=0.001)
    made.seed_, made.network_ = 0, torch.nn.Module()
    made.network_.points = torch.randn(32, 2, generator=torch.Generator().manual_seed(0)).double()
    nothing = Likelihood(torch.zeros(1, 2, 2).double(), torch.zeros(1, 2).double(), torch.zeros(1).double())
    assert made.drawn(nothing, torch.zeros(1)).figures[0, 0] == 1
    made.draws, made.warm_up, made.step = 8000, 100, 1.5
    assert made.drawn(nothing, torch.zeros(1)).figures[0, 0] == 0

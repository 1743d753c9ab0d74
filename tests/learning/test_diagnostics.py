"""Diagnostics of draws on samples whose law is known."""

from __future__ import annotations

import pytest
import torch

from metarec.learning.diagnostics import effective_draws, generalised_pareto_shape, pareto_k, split_r_hat


def quantiles(count: int) -> torch.Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


@pytest.mark.parametrize("shape", [-0.4, 0.2, 0.5, 0.9, 1.5])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0])
def test_the_shape_of_a_generalised_pareto_sample_is_found(shape: float, scale: float):
    excess = scale / shape * ((1 - quantiles(4000)) ** -shape - 1)
    found = generalised_pareto_shape(torch.stack([excess, 3 * excess]))
    assert found.tolist() == pytest.approx([shape] * 2, abs=0.02)


@pytest.mark.parametrize("shape", [0.3, 0.7, 1.2])
def test_weights_of_a_pareto_law_have_its_shape(shape: float):
    log_weight = -shape * quantiles(100_000).log()
    shuffled = log_weight[torch.randperm(100_000, generator=torch.Generator().manual_seed(0))]
    assert pareto_k(shuffled[None] - 300).item() == pytest.approx(shape, abs=0.03)


def test_equal_weights_have_no_tail_and_a_single_one_has_nothing_else():
    equal, single = torch.zeros(100), torch.zeros(100)
    single[3] = 2000.0
    found = pareto_k(torch.stack([equal, single]))
    assert found.tolist() == [-torch.inf, torch.inf]
    assert effective_draws(torch.stack([equal, single]).log_softmax(1)).tolist() == pytest.approx([100, 1])


def test_chains_that_agree_have_r_hat_one_and_stuck_or_drifting_ones_more():
    noise = torch.randn(2000, 3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise[:, 1, 0, 1] += 3
    noise[:, 2] += torch.linspace(0, 4, 2000).view(-1, 1, 1)
    agreed, stuck, drifting = split_r_hat(noise).tolist()
    assert agreed == pytest.approx(1, abs=0.01)
    assert stuck > 1.5 and drifting > 1.3


def test_r_hat_is_the_formula():
    chains = torch.randn(10, 1, 3, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    halves = torch.cat([chains[:5], chains[5:]], 2)[:, 0, :, 0]
    within = halves.var(0).mean()
    total = 4 / 5 * within + halves.mean(0).var()
    assert split_r_hat(chains).item() == pytest.approx((total / within).sqrt().item())

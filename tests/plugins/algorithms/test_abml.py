"""ABML through the contract; its optimum and its bound are held by its own oracles."""

from __future__ import annotations

import torch

from metarec.learning import Likelihood, Training
from metarec.plugins.algorithms.abml import ABML
from metarec.testing import AlgorithmConformance

SMALL = {"size": 4, "rank": 3, "training": Training(epochs=2)}


class TestConformance(AlgorithmConformance):
    algorithm = ABML
    options = SMALL


def test_every_step_raises_the_bound():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, 4, 4, generator=generator, dtype=torch.float64)
    likelihood = Likelihood(10 * root @ root.mT, 10 * torch.ones(5, 4).double(), torch.zeros(5).double())

    def bound(steps: int) -> torch.Tensor:
        mean, _ = ABML(rank=4, inner_steps=steps).climbed(likelihood)
        return likelihood(mean.unsqueeze(1)).squeeze(1) - mean.square().sum(1) / 2

    bounds = torch.stack([bound(steps) for steps in range(1, 8)])
    assert (bounds.diff(dim=0) > 0).all()

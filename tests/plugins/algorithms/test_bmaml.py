"""BMAML through the contract; its steps and where they end are held by its own oracles."""

from __future__ import annotations

import pytest
import torch

from metarec.errors import ConfigError
from metarec.learning import Likelihood, Training
from metarec.plugins.algorithms.bmaml import BMAML
from metarec.testing import AlgorithmConformance
from metarec.testing.world import small_world

SMALL = {"size": 4, "rank": 3, "draws": 16, "training": Training(epochs=2)}


class TestConformance(AlgorithmConformance):
    algorithm = BMAML
    options = SMALL


def test_particles_that_have_not_arrived_are_not_trusted():
    points = torch.randn(32, 2, generator=torch.Generator().manual_seed(0)).double()
    far = Likelihood(
        1e4 * torch.eye(2).double().unsqueeze(0), 1e4 * torch.ones(1, 2).double(), torch.zeros(1).double()
    )
    figures = []
    for steps in (2, 20):
        made = BMAML(rank=2, draws=32, inner_steps=steps)
        made.network_ = torch.nn.Module()
        made.network_.points = points
        figures.append(made.drawn(far, torch.ones(1)).figures[0])
    assert figures[0][0] == 1 and figures[1][0] == 0
    assert figures[1][1] < 1e-3 < figures[0][1]


def test_particles_must_be_more_than_features():
    with pytest.raises(ConfigError, match=r"bmaml: draws is 16, expected more than rank, 16"):
        BMAML(rank=16, draws=16).fit(small_world().split.train)

"""Laplace beside ALPaCA, which it equals for ratings; curvature and evidence are held by its own oracles."""

from __future__ import annotations

import torch

from metarec.learning import Run, Training
from metarec.plugins.algorithms.alpaca import Alpaca
from metarec.plugins.algorithms.laplace import Laplace
from metarec.testing import AlgorithmConformance
from metarec.testing.oracles.check import tasks_of
from metarec.testing.world import small_world

SMALL = {"size": 4, "rank": 3, "training": Training(epochs=2)}


class TestConformance(AlgorithmConformance):
    algorithm = Laplace
    options = SMALL


def test_with_the_same_weights_it_predicts_what_alpaca_does():
    tasks = tasks_of("new-user")
    fitted = Laplace(**SMALL).fit(small_world().split.train, run=Run(dtype=torch.float64))
    other = Alpaca(**SMALL).restore(fitted.state())
    found, expected = (one.predict(one.adapt(tasks.support), tasks.query) for one in (fitted, other))
    assert torch.equal(found.mean, expected.mean)
    assert torch.equal(found.variance, expected.variance)

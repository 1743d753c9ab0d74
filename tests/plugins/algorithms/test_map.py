"""MAP through the contract; its mode and its gradients are held by `metarec.testing.oracles`."""

from __future__ import annotations

import torch

from metarec.learning import Run, Training
from metarec.plugins.algorithms.map import MAP
from metarec.testing import AlgorithmConformance
from metarec.testing.oracles.check import tasks_of
from metarec.testing.world import small_world

SMALL = {"size": 4, "rank": 3, "training": Training(epochs=2)}


class TestConformance(AlgorithmConformance):
    algorithm = MAP
    options = SMALL


def test_its_variance_is_the_noise():
    tasks = tasks_of("new-user")
    fitted = MAP(**SMALL).fit(small_world().split.train, run=Run(dtype=torch.float64))
    prediction = fitted.predict(fitted.adapt(tasks.support), tasks.query)
    assert torch.equal(prediction.variance, prediction.noise)

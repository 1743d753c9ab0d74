"""Learners that read a support once: what they begin at, and how they go on after a stop."""

from pathlib import Path

import pytest
import torch

from metarec.data import SIDES
from metarec.learning import Run, Training
from metarec.learning.amortised import silent
from metarec.plugins.algorithms.bayesian_aggregation import BayesianAggregation
from metarec.plugins.algorithms.bias import Bias
from metarec.plugins.algorithms.neural_process import NeuralProcess
from metarec.testing.oracles.check import tasks_of
from metarec.testing.world import small_world

SMALL = {"size": 4, "latent": 3, "hidden": 8, "training": Training(epochs=3, patience=9)}


@pytest.mark.parametrize("scenario", ["warm", "new-user", "new-item", "new-both"])
def test_what_the_network_adds_to_is_the_bias_model(scenario: str):
    train, run, tasks = small_world().split.train, Run(dtype=torch.float64), tasks_of(scenario)
    fitted = NeuralProcess(**SMALL).fit(train, run=run)
    for side in SIDES:
        silent(fitted.side(side).decoder.last)
    floor = Bias().fit(train, run=run)
    found, expected = (one.predict(one.adapt(tasks.support), tasks.query) for one in (fitted, floor))
    assert torch.allclose(found.mean, expected.mean, rtol=1e-10)
    assert torch.allclose(
        found.variance, expected.variance, rtol=1e-6
    )  # draws are scaled in single precision


def test_stopped_and_resumed_it_ends_the_same(tmp_path: Path):
    train, checkpoint = small_world().split.train, tmp_path / "checkpoint"
    whole = BayesianAggregation(**SMALL).fit(train)
    with pytest.raises(_Stopped):
        BayesianAggregation(**SMALL).fit(train, run=Run(hooks=_StopsAfter(2), checkpoint=checkpoint))
    assert checkpoint.with_name("checkpoint.held-out").exists()
    resumed = BayesianAggregation(**SMALL).fit(train, run=Run(checkpoint=checkpoint))
    for one, other in zip(whole.network_.parameters(), resumed.network_.parameters(), strict=True):
        assert torch.equal(one, other)


class _Stopped(Exception):
    pass


class _StopsAfter:
    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def after_epoch(self, algorithm, epoch, values) -> None:
        self.epochs -= 1
        if self.epochs == 0:
            raise _Stopped

"""How networks are fitted: the epochs chosen on newcomers, the weights trained on everybody."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metarec.learning import Descent, NeuralAlgorithm, Run, Silent, Sizes, Training
from metarec.plugins.algorithms.alpaca import Alpaca
from metarec.plugins.algorithms.bias import Bias
from metarec.plugins.algorithms.importance import Importance
from metarec.plugins.algorithms.maml import MAML
from metarec.plugins.algorithms.melu import MeLU
from metarec.plugins.algorithms.meta_content import MetaContent
from metarec.plugins.algorithms.reptile import Reptile
from metarec.plugins.algorithms.versa import Versa
from metarec.tasks import TaskSampler
from metarec.testing.world import small_world

TRAINING = Training(epochs=4, learning_rate=0.02, patience=2)


class Hooks:
    """Keeps what is reported."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []

    def after_epoch(self, algorithm: Any, epoch: int, values: Any) -> None:
        self.reports.append({"epoch": epoch, **values})


def learner(training: Training = TRAINING) -> MAML:
    return MAML(size=3, hidden=(4,), training=training)


def weights(fitted: NeuralAlgorithm) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in fitted.network_.parameters()])


def test_newcomers_choose_the_epochs_and_everybody_trains():
    train, hooks = small_world().split.train, Hooks()
    fitted = learner().fit(train, run=Run(hooks=hooks))
    search = [report for report in hooks.reports if "valid_loss" in report]
    best = min(search, key=lambda report: report["valid_loss"])
    last = hooks.reports[len(search) :]
    assert [report["epoch"] for report in last] == list(range(best["epoch"] + 1))
    plain = learner(replace(TRAINING, held_out=0.0))
    plain._best_epochs = lambda sampler, train, run: best["epoch"] + 1
    assert torch.equal(weights(plain.fit(train)), weights(fitted))


def test_without_newcomers_all_epochs_are_run():
    hooks = Hooks()
    learner(replace(TRAINING, held_out=0.0)).fit(small_world().split.train, run=Run(hooks=hooks))
    assert [report["epoch"] for report in hooks.reports] == [0, 1, 2, 3]
    assert not any("valid_loss" in report for report in hooks.reports)


@pytest.mark.parametrize("implicit", [False, True])
def test_own_embeddings_of_newcomers_stay_as_drawn(implicit: bool):
    train, run = small_world(implicit=implicit).split.train, Run()
    fitted = learner(replace(TRAINING, epochs=1, held_out=0.25)).fit(train)
    sampler = TaskSampler(train, fitted.sides, fitted.sampling, device=run.device, dtype=run.dtype)
    fitted._best_epochs(sampler, train, run)
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        start = fitted.build(Sizes(**fitted.sizes_))
    for side, count in (("user", 48), ("item", 32)):
        before, after = (network.embeddings[side].own for network in (start, fitted.network_))
        assert (before == after).all(1).sum() == count // 4


class _Stopped(Exception):
    pass


class _StopsAfter(Silent):
    """A progress that raises when some epochs, of both trainings together, are over."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def track(self, steps, *, description, total=None):
        for step in steps:
            if self.left == 0:
                raise _Stopped
            self.left -= 1
            yield step


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (MAML, {"dropout": 0.3, "hidden": (4,)}),
        (Alpaca, {}),
        (Importance, {"draws": 16}),
        (MetaContent, {"descent": Descent(epochs=1)}),
        (Versa, {"hidden": 4}),
    ],
)
@pytest.mark.parametrize("epochs", [3, 6])
def test_stopped_in_either_training_and_resumed_it_ends_the_same(
    cls: type[NeuralAlgorithm], options: dict[str, Any], epochs: int, tmp_path: Path
):
    train, checkpoint = small_world().split.train, tmp_path / "learner.checkpoint"
    options = {**options, "training": replace(TRAINING, learning_rate=0.003, patience=9), "size": 3}
    whole = cls(**options).fit(train)
    with pytest.raises(_Stopped):
        cls(**options).fit(train, run=Run(progress=_StopsAfter(epochs), checkpoint=checkpoint))
    torch.rand(3)  # whatever else draws in between
    again = Hooks()
    resumed = cls(**options).fit(train, run=Run(checkpoint=checkpoint, hooks=again))
    assert again.reports[0]["epoch"] > 0, "it goes on from where it was stopped"
    assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.parametrize("scenario", ["new-user", "new-item", "new-both", "warm"])
@pytest.mark.parametrize("cls", [MAML, MeLU, Reptile, Alpaca, Versa])
def test_before_it_learns_anything_it_says_what_the_biases_say(cls: type[NeuralAlgorithm], scenario: str):
    train, tasks = small_world().split.train, small_world().tasks(scenario)
    untrained = cls(training=Training(epochs=1, learning_rate=1e-6, held_out=0.0)).fit(train)
    floor, support = Bias().fit(train), tasks.support.first(0)
    found, expected = (one.predict(one.adapt(support), tasks.query) for one in (untrained, floor))
    # An epoch of steps of 1e-6 moves a prediction by some 2e-5.
    assert torch.allclose(found.mean, expected.mean, rtol=0, atol=1e-4)
    assert scenario == "new-both" or expected.mean.std() > 0.01


def test_an_untrained_gaussian_head_moves_about_as_the_biases_do():
    train, tasks = small_world().split.train, small_world().tasks("new-user")
    untrained = Alpaca(training=Training(epochs=1, learning_rate=1e-6, held_out=0.0)).fit(train)
    floor = Bias().fit(train)
    found, expected = (
        one.predict(one.adapt(tasks.support), tasks.query).mean
        - one.predict(one.adapt(tasks.support.first(0)), tasks.query).mean
        for one in (untrained, floor)
    )
    assert torch.corrcoef(torch.stack([found, expected]))[0, 1] > 0.9


@pytest.mark.parametrize(
    ("how", "deviation", "bound"),
    [
        ("normal", lambda rows, columns: 0.1, lambda rows, columns: math.inf),
        ("uniform", lambda rows, columns: 0.1 / math.sqrt(3), lambda rows, columns: 0.1),
        (
            "xavier",
            lambda rows, columns: math.sqrt(2 / (rows + columns)),
            lambda rows, columns: math.sqrt(6 / (rows + columns)),
        ),
    ],
)
def test_weights_start_as_asked(how: str, deviation: Any, bound: Any):
    training = Training(epochs=1, learning_rate=1e-6, initialisation=how, held_out=0.0)
    fitted = MAML(size=30, hidden=(64,), training=training).fit(small_world().split.train)
    tables = [weight for weight in fitted.network_.parameters() if weight.dim() == 2 and weight.numel() > 200]
    assert len(tables) == 5  # own embeddings, one of the attributes, first layers
    for table in tables:
        assert table.std().item() == pytest.approx(deviation(*table.shape), rel=0.1)
        assert table.abs().max() <= bound(*table.shape) + 1e-4
    biases = [weight for weight in fitted.network_.parameters() if weight.dim() == 1]
    assert biases and all(bias.abs().max() < 1e-4 for bias in biases)

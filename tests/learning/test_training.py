"""The trainer against loops and closed forms written out, and against itself when it is stopped and goes on."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from metarec.errors import TrainingError
from metarec.learning import EntityEmbedding, Run, Silent, Trainer, Training, TrainingWarning
from metarec.tasks import Sampling, Tasks, TaskSampler
from metarec.testing.world import small_world

CPU = torch.device("cpu")


class Level(nn.Module):
    """Predicts one number; its loss is the mean squared error, scaled in the steps that `scale` names."""

    def __init__(self, scale: dict[int, float] | None = None) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor([0.0, 0.5], dtype=torch.float64))
        self.scale = scale or {}
        self.steps = 0

    def loss(self, tasks: Tasks) -> Tensor:
        return (self.level.sum() - tasks.rating.double()).square().mean()

    def backward(self, tasks: Tasks) -> Tensor:
        loss = self.loss(tasks) * self.scale.get(self.steps, 1.0)
        self.steps += 1
        loss.backward()
        return loss


def sampler(tasks: int = 16) -> TaskSampler:
    train = small_world().split.train
    return TaskSampler(train, ("user",), Sampling(tasks=tasks), device=CPU, dtype=torch.float32)


def with_newcomers() -> tuple[TaskSampler, list[Tasks]]:
    return sampler().hold_out(0.2, torch.Generator().manual_seed(5))


def train(
    module: Level, training: Training, *, run: Run = Run(), valid: bool = False
) -> list[dict[str, float]]:
    reports: list[dict[str, float]] = []
    drawn, held_out = with_newcomers() if valid else (sampler(), [])
    trainer = Trainer(module, module.loss, training, run, name="level", backward=module.backward)
    trainer.train(drawn, held_out, lambda epoch, values: reports.append(dict(values)))
    return reports


PLAIN = Training(
    epochs=4, optimizer="sgd", learning_rate=0.05, schedule="constant", warm_up=0, clip=1e6, patience=99
)


def test_it_is_gradient_descent():
    module = Level()
    reports = train(module, replace(PLAIN, l1=0.01, l2=0.1))
    level, generator = torch.tensor([0.0, 0.5], dtype=torch.float64), torch.Generator().manual_seed(0)
    for report in reports:
        losses = []
        for tasks in sampler().epoch(generator):
            error = level.sum() - tasks.rating.double()
            losses.append(error.square().mean())
            level = level - 0.05 * (2 * error.mean() + 0.01 * level.sign() + 0.1 * level)
        loss = torch.stack(losses).mean().item()
        assert report["loss"] == pytest.approx(loss, rel=1e-9)
    assert torch.allclose(module.level, level, rtol=1e-9)


class Near(nn.Module):
    """Weights whose loss is half the squared distance from `goal`."""

    def __init__(self, goal: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros_like(goal))
        self.goal = goal

    def loss(self, tasks: Tasks) -> Tensor:
        return (self.weight - self.goal).square().sum() / 2

    def backward(self, tasks: Tasks) -> Tensor:
        loss = self.loss(tasks)
        loss.backward()
        return loss


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(("l1", "l2"), [(0.3, 0.0), (0.0, 0.5), (0.3, 0.5)])
def test_penalties_end_at_the_soft_threshold_and_at_ridge(optimizer: str, l1: float, l2: float):
    """The minimum of ``½ (w − a)² + l1 |w| + ½ l2 w²`` is ``sign(a) max(|a| − l1, 0) / (1 + l2)``."""
    goal = torch.tensor([2.0, 0.5, 0.1, -0.2, -1.5], dtype=torch.float64)
    module = Near(goal)
    training = replace(
        PLAIN, epochs=100, optimizer=optimizer, learning_rate=0.1, schedule="cosine", l1=l1, l2=l2
    )
    trainer = Trainer(module, module.loss, training, Run(), name="near", backward=module.backward)
    trainer.train(sampler(), [], lambda epoch, values: None)
    expected = goal.sign() * (goal.abs() - l1).clamp(min=0) / (1 + l2)
    assert (module.weight - expected).abs().max() < 1e-3


def test_the_penalty_of_attributes_spares_what_entities_have_of_their_own():
    """``½ (w − 2)² + ½ (e − 3)² + ½ λ w²`` has its minimum at ``w = 2 / (1 + λ)``, e = 3."""
    module = nn.ModuleDict({"entities": EntityEmbedding(1, 1, 1)}).double()
    attributes, own = module.entities.parameters()

    def loss(tasks: Tasks) -> Tensor:
        return ((attributes - 2).square() + (own - 3).square()).sum() / 2

    def backward(tasks: Tasks) -> Tensor:
        found = loss(tasks)
        found.backward()
        return found

    training = replace(PLAIN, epochs=100, learning_rate=0.1, schedule="cosine", attribute_l2=0.25)
    trainer = Trainer(module, loss, training, Run(), name="near", backward=backward)
    trainer.train(sampler(), [], lambda epoch, values: None)
    assert attributes.item() == pytest.approx(2 / 1.25, abs=1e-3)
    assert own.item() == pytest.approx(3, abs=1e-3)


def test_gradients_are_clipped():
    module = Level()
    train(module, replace(PLAIN, epochs=1, clip=0.1))
    steps = len(sampler())
    assert module.level.sum().item() == pytest.approx(0.5 + steps * 0.05 * 0.1 * math.sqrt(2), rel=1e-6)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1.0, 1.0, 1.0]),
        ("step", [0.1, 0.01, 0.001]),
        ("exponential", [0.01 ** (1 / 3), 0.01 ** (2 / 3), 0.01]),
        ("cosine", [(1 + math.cos(math.pi * part / 3)) / 2 for part in (1, 2, 3)]),
    ],
)
def test_learning_rates_fall_as_they_should(schedule: str, expected: list[float]):
    reports = train(Level(), replace(PLAIN, epochs=3, schedule=schedule))
    rates = [report["learning_rate"] / 0.05 for report in reports]
    assert rates == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_the_learning_rate_rises_first():
    reports = train(Level(), replace(PLAIN, epochs=4, warm_up=0.5))
    assert [report["learning_rate"] / 0.05 for report in reports] == pytest.approx([0.505, 1, 1, 1], rel=1e-6)


def test_plateaus_halve_the_learning_rate():
    module = Level()
    with torch.no_grad():
        module.level.copy_(torch.tensor([1.5, 1.8]))
    reports = train(
        module, replace(PLAIN, epochs=8, schedule="plateau", learning_rate=1e-6, l2=0.0), valid=True
    )
    stuck = train(_at_rest(), replace(PLAIN, epochs=8, schedule="plateau", learning_rate=1e-6), valid=True)
    assert reports[0]["learning_rate"] == 1e-6
    assert stuck[-1]["learning_rate"] == pytest.approx(0.25e-6)


def _at_rest() -> Level:
    """A module whose validation loss never changes."""
    module = Level()
    module.backward = lambda tasks: (module.level.sum() * 0).backward() or torch.tensor(1.0)
    return module


def test_it_stops_early_and_keeps_the_best_epoch():
    reports = train(_at_rest(), replace(PLAIN, epochs=50, patience=3), valid=True)
    assert len(reports) == 1 + 3
    module = Level()
    reports = train(module, replace(PLAIN, epochs=6, learning_rate=0.4), valid=True)
    best = min(reports, key=lambda report: report["valid_loss"])
    held_out = with_newcomers()[1]
    count = sum(tasks.rating.numel() for tasks in held_out)
    loss = sum(module.loss(tasks).item() * tasks.rating.numel() for tasks in held_out) / count
    assert loss == pytest.approx(best["valid_loss"], rel=1e-5)


class _Stopped(Exception):
    pass


class _StopsAfter(Silent):
    """A progress that raises when some epochs are over."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def track(self, steps, *, description, total=None):
        for step in steps:
            if self.left == 0:
                raise _Stopped
            self.left -= 1
            yield step


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["constant", "step", "exponential", "cosine", "plateau"])
def test_stopped_and_resumed_it_ends_the_same(optimizer: str, schedule: str, tmp_path: Path):
    training = replace(PLAIN, epochs=6, optimizer=optimizer, schedule=schedule, warm_up=0.3, patience=4)
    whole = Level()
    reports = train(whole, training, valid=True)
    checkpoint = tmp_path / "level.checkpoint"
    with pytest.raises(_Stopped):
        train(Level(), training, valid=True, run=Run(progress=_StopsAfter(2), checkpoint=checkpoint))
    resumed = Level()
    later = train(resumed, training, valid=True, run=Run(checkpoint=checkpoint))
    assert later == reports[2:]
    assert torch.equal(whole.level, resumed.level)


def test_a_finished_fit_is_taken_from_its_checkpoint(tmp_path: Path):
    checkpoint = tmp_path / "level.checkpoint"
    first, again = Level(), Level()
    train(first, PLAIN, run=Run(checkpoint=checkpoint))
    assert train(again, PLAIN, run=Run(checkpoint=checkpoint)) == []
    assert torch.equal(first.level, again.level)


def test_wrong_checkpoints_are_named(tmp_path: Path):
    checkpoint = tmp_path / "level.checkpoint"
    train(Level(), PLAIN, run=Run(checkpoint=checkpoint))
    other = Level()
    other.level = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    with pytest.raises(TrainingError, match="of 'level' with other options or data"):
        train(other, PLAIN, run=Run(checkpoint=checkpoint))
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(TrainingError, match=r"level\.checkpoint: is no checkpoint, or a damaged one"):
        train(Level(), PLAIN, run=Run(checkpoint=checkpoint))


def test_a_loss_that_is_no_number_stops_it():
    with pytest.raises(TrainingError, match=r"'level': the loss is no finite number at step 1 \(epoch 0\)"):
        train(Level({1: math.nan}), PLAIN)
    module, whole = Level({4: math.inf}), Level()
    with pytest.warns(TrainingWarning, match=r"at step 4 \(epoch 1\).*the weights after epoch 0 are kept"):
        train(module, PLAIN)
    train(whole, replace(PLAIN, epochs=1))
    assert torch.equal(module.level, whole.level)


def test_without_a_task_it_says_so():
    everybody = small_world().split.train
    nobody = everybody.take(torch.zeros(len(everybody), dtype=torch.bool))
    drawn = TaskSampler(nobody, ("user",), Sampling(), device=CPU, dtype=torch.float32)
    module = Level()
    trainer = Trainer(module, module.loss, PLAIN, Run(), name="level", backward=module.backward)
    with pytest.raises(TrainingError, match="'level': nothing to train on, no entity has two ratings"):
        trainer.train(drawn, [], lambda epoch, values: None)


def test_a_loss_that_is_no_number_in_validation_stops_it():
    module = Level()
    module.loss = lambda tasks: torch.tensor(math.nan)
    module.backward = lambda tasks: (module.level.sum() * 0).backward() or torch.tensor(1.0)
    with pytest.raises(TrainingError, match="no finite number at the validation after epoch 0"):
        train(module, PLAIN, valid=True)

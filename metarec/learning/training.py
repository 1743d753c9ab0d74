"""How a learner's weights are trained: epochs over drawn tasks, until validation says stop."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import lr_scheduler

from metarec.atomic import replacing
from metarec.device import seeded
from metarec.errors import TrainingError
from metarec.learning.embedding import EntityEmbedding
from metarec.learning.run import Run
from metarec.options import Range
from metarec.tasks import Tasks, TaskSampler

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),
    "adamw": partial(torch.optim.AdamW, fused=True),
    "sgd": partial(torch.optim.SGD, fused=True),
}


@dataclass(frozen=True)
class Training:
    """How weights are trained.

    Parameters
    ----------
    epochs : int, default 30
        Passes over the known entities, at most.
    initialisation : "default", "normal", "uniform" or "xavier", default "default"
        What the tables of embeddings and the matrices of linear layers start from: what the algorithm draws;
        N(0, 0.1²); U(−0.1, 0.1); or U(−b, b) with b² = 6 / (rows + columns). With these three, biases of layers start
        at 0.
    optimizer : "adam", "adamw" or "sgd", default "adam"
        The rule of a step.
    learning_rate : float, default 0.003
        Its greatest value.
    schedule : "constant", "step", "exponential", "cosine" or "plateau", default "cosine"
        How the learning rate falls: not at all; to a tenth after each third of the steps; to a hundredth, by the same
        factor in every step; to zero along half a cosine; to a half when validation has not improved for 2 epochs.
    warm_up : float, default 0.02
        Share of the steps in which the learning rate rises from a hundredth.
    l1, l2 : float, default 0
        Weight of the sum of the weights' magnitudes, and of half the sum of their squares, in the loss (with "adamw"
        `l2` is decoupled decay).
    attribute_l2 : float, default 0.003
        Weight of half the sum of the squares of what attributes say in embeddings, in the loss, whichever optimiser.
        Attributes of few entities could else tell these apart, in place of what they have in common with new ones: to
        "adam" and "adamw" a rare gradient is as good as a frequent one, but the penalty's is there in every step.
    clip : float, default 10
        Greatest norm of the gradient of a step.
    held_out : float, default 0.1
        Share of the known users and of the known items that are taken for newcomers, to see how many epochs serve
        newcomers best; the weights are then trained on everybody, for as many epochs. With 0 no one is, and all epochs
        are run.
    patience : int, default 5
        Epochs without a better validation loss after which to stop.
    """

    epochs: Annotated[int, Range(1, 100_000)] = 30
    initialisation: Literal["default", "normal", "uniform", "xavier"] = "default"
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: Annotated[float, Range(1e-6, 1.0, log=True)] = 0.003
    schedule: Literal["constant", "step", "exponential", "cosine", "plateau"] = "cosine"
    warm_up: Annotated[float, Range(0.0, 0.9)] = 0.02
    l1: Annotated[float, Range(0.0, 1.0)] = 0.0
    l2: Annotated[float, Range(0.0, 1.0)] = 0.0
    attribute_l2: Annotated[float, Range(0.0, 1.0)] = 3e-3
    clip: Annotated[float, Range(1e-6, 1e6, log=True)] = 10.0
    held_out: Annotated[float, Range(0.0, 0.5)] = 0.1
    patience: Annotated[int, Range(1, 100_000)] = 5


class Trainer:
    """Trains a module's weights in place.

    Parameters
    ----------
    module : Module
    loss : function of Tasks to Tensor
        The mean loss of a batch's query ratings.
    training : Training
    run : Run
        Seed, progress, and where checkpoints go.
    name : str
        What people are told is being trained.
    backward : function of Tasks to Tensor
        Adds the gradients of a batch to the weights', and returns its loss.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[Tasks], Tensor],
        training: Training,
        run: Run,
        *,
        name: str,
        backward: Callable[[Tasks], Tensor],
    ) -> None:
        self.module = module
        self.loss = loss
        self.training = training
        self.run = run
        self.name = name
        self.backward = backward
        self.weights = list(module.parameters())
        self.attributes = [part.content for part in module.modules() if isinstance(part, EntityEmbedding)]
        self.optimizer = OPTIMIZERS[training.optimizer](
            self.weights, lr=training.learning_rate, weight_decay=training.l2
        )

    def train(
        self,
        sampler: TaskSampler,
        valid: Sequence[Tasks],
        report: Callable[[int, Mapping[str, float]], None],
        *,
        epochs: int | None = None,
    ) -> int:
        """Train until the epochs are over or validation has stopped to improve.

        Parameters
        ----------
        sampler : TaskSampler
        valid : sequence of Tasks
            Batches to stop early by: the best epoch's weights are kept. Without any the last epoch's are.
        report : function of epoch and figures
            Told after every epoch.
        epochs : int, optional
            Stop after so many, with the schedule of them all; default all.

        Returns
        -------
        int
            The epochs that the weights have been trained for.

        Raises
        ------
        TrainingError
            There are no tasks, or the loss of the first epoch is not a finite number. Where that comes later, a warning
            says so and the weights of the best epoch, or of the last one before, are kept.
        """
        if len(sampler) == 0:
            raise TrainingError(f"training of {self.name!r}: nothing to train on, no entity has two ratings")
        generator = self.run.generator()
        schedule = _Schedule(self.optimizer, self.training, len(sampler))
        history = _History(_copied(self.module))
        if self.run.checkpoint is not None and self.run.checkpoint.exists():
            self._resume(self.run.checkpoint, history, schedule, generator)
        for epoch in self.run.epochs(epochs or self.training.epochs, f"train {self.name}"):
            if epoch < history.epochs or history.stale >= self.training.patience:
                continue
            try:
                figures = self._epoch(epoch, sampler.epoch(generator), valid, schedule)
            except _Diverged as where:
                self._give_up(str(where), history)
                break
            schedule.after_epoch(figures.get("valid_loss", figures["loss"]))
            history.add(figures.get("valid_loss"), self.module)
            report(epoch, {**figures, "learning_rate": schedule.learning_rate})
            if self.run.checkpoint is not None:
                self._save(self.run.checkpoint, history, schedule, generator)
        self.module.load_state_dict(history.best)
        return history.epochs - history.stale

    def _epoch(
        self, epoch: int, batches: Iterable[Tasks], valid: Sequence[Tasks], schedule: _Schedule
    ) -> dict[str, float]:
        """Train for an epoch; its losses. What layers draw, as in dropout, depends on the seed and the epoch only."""
        with seeded(self.run.seed + epoch, self.run.device):
            losses = [self._step(tasks, schedule, epoch) for tasks in batches]
        figures = {"loss": float(torch.stack(losses).mean())}
        if valid:
            figures["valid_loss"] = self._valid_loss(valid)
            if not math.isfinite(figures["valid_loss"]):
                raise _Diverged(f"the validation after epoch {epoch}")
        return figures

    def _step(self, tasks: Tasks, schedule: _Schedule, epoch: int) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.backward(tasks)
        if self.training.l1:
            penalty = self.training.l1 * torch.stack([weight.abs().sum() for weight in self.weights]).sum()
            penalty.backward()
        for table in self.attributes:
            if table.grad is not None:
                table.grad.add_(table.detach(), alpha=self.training.attribute_l2)
        norm = nn.utils.clip_grad_norm_(self.weights, self.training.clip)
        # The only time in a step that the device is waited for here.
        if not (loss.isfinite() & norm.isfinite()):
            raise _Diverged(f"step {schedule.steps} (epoch {epoch})")
        self.optimizer.step()
        schedule.after_step()
        return loss.detach()

    def _valid_loss(self, valid: Sequence[Tasks]) -> float:
        self.module.eval()
        with torch.no_grad():
            counts = torch.tensor([float(tasks.rating.numel()) for tasks in valid])
            losses = torch.stack([self.loss(tasks) for tasks in valid]).float().cpu()
        self.module.train()
        return float((losses * counts).sum() / counts.sum())

    def _give_up(self, where: str, history: _History) -> None:
        message = (
            f"training of {self.name!r}: the loss is no finite number at {where}: try a lower learning rate"
        )
        if history.epochs == 0:
            raise TrainingError(message)
        kept = history.epochs - history.stale
        warnings.warn(
            f"{message}; the weights after epoch {kept - 1} are kept", TrainingWarning, stacklevel=3
        )

    def _save(self, path: Path, history: _History, schedule: _Schedule, generator: torch.Generator) -> None:
        tensors = {"generator": generator.get_state()}
        tensors |= {f"module/{name}": value for name, value in self.module.state_dict().items()}
        tensors |= {f"best/{name}": value for name, value in history.best.items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": torch.as_tensor(value) for name, value in values.items()}
        record = {"name": self.name, "history": history.record(), "schedule": schedule.record()}
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
            save_file(whole, file, metadata={"record": json.dumps(record)})

    def _resume(self, path: Path, history: _History, schedule: _Schedule, generator: torch.Generator) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                record = json.loads(file.metadata()["record"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, a file is no mapping
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            raise TrainingError(
                f"{path}: is no checkpoint, or a damaged one: remove it to train anew"
            ) from None
        if record["name"] != self.name:
            raise TrainingError(
                f"{path}: is a checkpoint of {record['name']!r}, expected one of {self.name!r}"
            )
        try:
            self.module.load_state_dict(_within(tensors, "module"))
        except RuntimeError:
            raise TrainingError(
                f"{path}: is a checkpoint of {self.name!r} with other options or data"
            ) from None
        history.restore(record["history"], _within(tensors, "best"))
        kept: dict[int, dict[str, Tensor]] = {}
        for name, value in _within(tensors, "optimizer").items():
            index, field_name = name.split("/", 1)
            kept.setdefault(int(index), {})[field_name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": kept})
        schedule.restore(record["schedule"])
        generator.set_state(tensors["generator"])


class TrainingWarning(UserWarning):
    """Something about a fit that its user should know."""


class _Diverged(Exception):
    """Where a loss was no finite number."""


@dataclass
class _History:
    """The best epoch so far, which is the last one where nothing judges, and how many there were since."""

    best: dict[str, Tensor]
    best_loss: float = float("inf")
    epochs: int = 0
    stale: int = 0

    def add(self, loss: float | None, module: nn.Module) -> None:
        self.epochs += 1
        self.stale += 1
        if loss is None or loss < self.best_loss:
            self.best, self.stale = _copied(module), 0
            self.best_loss = self.best_loss if loss is None else loss

    def record(self) -> dict[str, float]:
        return {"best_loss": self.best_loss, "epochs": self.epochs, "stale": self.stale}

    def restore(self, record: Mapping[str, Any], best: dict[str, Tensor]) -> None:
        self.best = best
        self.best_loss, self.epochs, self.stale = record["best_loss"], record["epochs"], record["stale"]


class _Schedule:
    """The learning rate over the steps, and over what validation says where it falls by plateau."""

    def __init__(self, optimizer: torch.optim.Optimizer, training: Training, steps_per_epoch: int) -> None:
        steps = max(1, training.epochs * steps_per_epoch)
        rising = round(training.warm_up * steps)
        by_step = _fall(optimizer, training, max(1, steps - rising))
        if rising:
            rise = lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=rising)
            by_step = lr_scheduler.SequentialLR(optimizer, [rise, by_step], milestones=[rising])
        self.optimizer = optimizer
        self.by_step = by_step
        self.by_loss = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2)
        self.has_plateaus = training.schedule == "plateau"
        self.steps = 0

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def after_step(self) -> None:
        self.steps += 1
        self.by_step.step()

    def after_epoch(self, loss: float) -> None:
        if self.has_plateaus:
            self.by_loss.step(loss)

    def record(self) -> dict[str, Any]:
        by_step, by_loss = self.by_step.state_dict(), self.by_loss.state_dict()
        return {
            "by_step": by_step,
            "by_loss": by_loss,
            "steps": self.steps,
            "learning_rate": self.learning_rate,
        }

    def restore(self, record: Mapping[str, Any]) -> None:
        self.by_step.load_state_dict(record["by_step"])
        self.by_loss.load_state_dict(record["by_loss"])
        self.steps = record["steps"]
        for group in self.optimizer.param_groups:
            group["lr"] = record["learning_rate"]


def _fall(optimizer: torch.optim.Optimizer, training: Training, steps: int) -> lr_scheduler.LRScheduler:
    match training.schedule:
        case "step":
            return lr_scheduler.StepLR(optimizer, step_size=-(-steps // 3), gamma=0.1)
        case "exponential":
            return lr_scheduler.ExponentialLR(optimizer, gamma=0.01 ** (1 / steps))
        case "cosine":
            return lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        case _:
            return lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _within(tensors: Mapping[str, Tensor], folder: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``folder/``, by the rest of their names."""
    return {
        name.removeprefix(f"{folder}/"): value
        for name, value in tensors.items()
        if name.startswith(f"{folder}/")
    }

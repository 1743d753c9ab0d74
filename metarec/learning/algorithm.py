"""The algorithm contract: fit across tasks, adapt to one, predict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from metarec.data import Dataset
from metarec.learning.run import Run
from metarec.options import parameters
from metarec.tasks import SCENARIOS, Query, Support, Tasks


@dataclass(frozen=True)
class Prediction:
    """What is expected of each query partner, all tasks' one after another.

    Parameters
    ----------
    mean : float [n]
        Predictive mean, not clipped to the scale; for implicit feedback a score.
    variance : float [n], optional
        Variance of a new observation: what is unknown and the noise together.
    noise : float [n], optional
        The part of `variance` that no further rating would remove.
    """

    mean: Tensor
    variance: Tensor | None = None
    noise: Tensor | None = None


@dataclass(frozen=True)
class Adapted:
    """Base of what an algorithm makes of a batch of T supports: a frozen dataclass whose tensors are ``[T, …]``.

    A field that is no tensor has `select` and `to` of its own (such as a `Ragged`), or is the same for all tasks.
    """

    def select(self, tasks: Tensor) -> Self:
        """Only these tasks (int64 [M]), in that order."""
        return self._map(lambda value: value[tasks] if isinstance(value, Tensor) else value.select(tasks))

    def to(self, device: torch.device | str | None = None) -> Self:
        """The same on `device`."""
        return self._map(lambda value: value.to(device))

    def _map(self, change: Any) -> Self:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        movable = {name: v for name, v in values.items() if isinstance(v, Tensor) or hasattr(v, "select")}
        return replace(self, **{name: change(value) for name, value in movable.items()})


class Algorithm(ABC):
    """Fits across tasks and adapts to one.

    ``__init__`` is keyword-only and typed, and only stores: so options are validated, shown and tuned. It names what it
    adds to its base's options, or gives another default, and passes on the rest as ``**options``: these are shown too.
    What `fit` learns ends in ``_`` and is a tensor, a number, a string, or a mapping from strings to such; that is what
    an artifact holds.

    Attributes
    ----------
    name : str
        What users type after `--algorithms`.
    scenarios : tuple of str
        The scenarios it can answer.
    feedback : tuple of "explicit", "implicit"
        The kinds of rating it can fit.
    ranks_by : "mean" or "choice"
        What lists over a catalogue are ranked by: the predicted mean, or, by `Factorized` algorithms that model it, how
        likely a partner is chosen at all, which is not what a rating says.
    is_floor : bool
        Whether it is a trivial predictor that reports compare the others with.
    """

    name: ClassVar[str]
    scenarios: ClassVar[tuple[str, ...]] = SCENARIOS
    feedback: ClassVar[tuple[str, ...]] = ("explicit", "implicit")
    ranks_by: ClassVar[Literal["mean", "choice"]] = "mean"
    is_floor: ClassVar[bool] = False

    @abstractmethod
    def fit(self, train: Dataset, *, valid: Tasks | None = None, run: Run = Run()) -> Self:
        """Learn from the known entities' interactions; return self.

        Parameters
        ----------
        train : Dataset
            Known entities, with features.
        valid : Tasks, optional
            Tasks to stop early by.
        run : Run
            Device, precision, seed, progress.
        """

    @abstractmethod
    def adapt(self, support: Support) -> Adapted:
        """What each task's support says of its entity; a support of size 0 gives the prior."""

    @abstractmethod
    def predict(self, adapted: Adapted, query: Query) -> Prediction:
        """Predict every query partner of every task."""

    def options(self) -> dict[str, Any]:
        """The options that this instance was made with."""
        return {name: getattr(self, name) for name in parameters(type(self))}

    def state(self) -> dict[str, Any]:
        """What `fit` learnt: every attribute whose name ends in one underscore."""
        return {n: v for n, v in vars(self).items() if n.endswith("_") and not n.startswith("_")}

    def restore(self, state: Mapping[str, Any]) -> Self:
        """Take up what another instance's `state` holds; return self."""
        for name, value in state.items():
            setattr(self, name, value)
        return self

    def to(self, device: torch.device | str) -> Self:
        """Move what `fit` learnt to `device`; return self."""
        return self.restore({name: moved(value, device) for name, value in self.state().items()})


def moved(value: Any, device: torch.device | str) -> Any:
    """A value of a state on `device`."""
    if isinstance(value, Mapping):
        return {name: moved(part, device) for name, part in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value

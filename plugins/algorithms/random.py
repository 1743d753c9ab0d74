"""A floor: chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from metarec import hookimpl
from metarec.data import Dataset
from metarec.learning import Adapted, Algorithm, Prediction, Run, residual_variance
from metarec.tasks import Query, Support, Tasks


@dataclass(frozen=True)
class Key(Adapted):
    """What tells a task from others.

    Parameters
    ----------
    key : int64 [T]
    like : float [T]
        Zeros of the type to predict in.
    """

    key: Tensor
    like: Tensor


class Random(Algorithm):
    """Ranks at random, the same way every time.

    u is a number in (0, 1) hashed from the seed of the fit, the task (its entity's row and features, its support) and
    the partner's place in the batch's partners, so that it depends neither on the order of the tasks nor on the other
    queries. Implicit feedback: the score is u.

    Explicit ratings: a guess with the training ratings' mean μ and variance σ², ``μ + σ Φ⁻¹(u)``; as guess and rating
    both vary, the variance is 2 σ².

    References
    ----------
    Steele, Lea, Flood 2014, Fast splittable pseudorandom number generators (the hash).
    """

    name = "random"
    is_floor = True

    def fit(self, train: Dataset, *, valid: Tasks | None = None, run: Run = Run()) -> Self:
        """Learn mean and variance, and take the seed."""
        self.seed_ = run.seed
        self.implicit_ = train.scale.implicit
        self.mean_ = float(train.rating.mean(dtype=torch.float64))
        self.variance_ = residual_variance(train.rating - self.mean_)
        return self

    def adapt(self, support: Support) -> Key:
        """A key for each task, the same for any order of its ratings and features."""
        entities = support.entities
        key = _mix(entities.rows + _mix(torch.full_like(entities.rows, self.seed_)))
        _add(key, entities.features.owner, entities.features.columns, entities.features.values)
        _add(key, support.owner, ~support.partner, support.rating)
        return Key(key, torch.zeros_like(key, dtype=support.rating.dtype))

    def predict(self, adapted: Adapted, query: Query) -> Prediction:
        """A guess for every query partner."""
        assert isinstance(adapted, Key)
        uniform = _uniform(_mix(_mix(adapted.key)[query.owner] + _mix(query.partner)))
        dtype = adapted.like.dtype
        if self.implicit_:
            return Prediction(uniform.to(dtype))
        guess = self.mean_ + self.variance_**0.5 * torch.special.ndtri(uniform)
        return Prediction(guess.to(dtype), torch.full_like(guess, 2 * self.variance_, dtype=dtype))


def _add(key: Tensor, owner: Tensor, place: Tensor, value: Tensor) -> None:
    """Add to each task's key a hash of its (place, value) pairs, whatever their order."""
    bits = value.to(torch.float64).view(torch.int64)
    key.index_add_(0, owner, _mix(_mix(place) + bits))


def _mix(value: Tensor) -> Tensor:
    """int64 [n]: the output function of SplitMix64, on 64-bit numbers that wrap around."""
    value = value + (0x9E3779B97F4A7C15 - (1 << 64))
    value = (value ^ _shift(value, 30)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    value = (value ^ _shift(value, 27)) * (0x94D049BB133111EB - (1 << 64))
    return value ^ _shift(value, 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    """`value` moved right by `bits` as an unsigned number."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _uniform(value: Tensor) -> Tensor:
    """float64 [n] in (0, 1), both ends left out: from the upper 52 bits."""
    return (_shift(value, 12).to(torch.float64) + 0.5) * 2.0**-52


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `Random`."""
    register(Random)

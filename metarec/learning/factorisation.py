"""Factors of users and items by stochastic gradient descent on the ratings, one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from metarec.data import Dataset, Side
from metarec.errors import TrainingError
from metarec.learning.run import Run
from metarec.ops import cosine_sgd_epoch_
from metarec.options import Range

Similarity = Literal["cosine", "dot"]

HELD_OUT = 0.05
SPREAD = 0.3
HEAD_RATE: dict[Similarity, float] = {"cosine": 0.01, "dot": 0.0}
"""How fast scale and bias learn, beside the rows: they take a step for every rating, a row only for its own."""


@dataclass(frozen=True)
class Descent:
    """How a factorisation is fitted.

    Parameters
    ----------
    rank : int, default 32
        Number of factors.
    epochs : int, default 50
        Passes over the ratings, at most.
    learning_rate : float, default 0.02
        Its greatest value, from which it falls to zero along half a cosine.
    l2 : float, default 0.08
        Weight of half the squares of the rows and biases of each rating, beside half its squared error.
    patience : int, default 5
        Epochs that do not predict held-out ratings better after which to stop.
    """

    rank: Annotated[int, Range(1, 1024)] = 32
    epochs: Annotated[int, Range(1, 100_000)] = 50
    learning_rate: Annotated[float, Range(1e-6, 1.0, log=True)] = 0.02
    l2: Annotated[float, Range(0.0, 10.0)] = 0.08
    patience: Annotated[int, Range(1, 100_000)] = 5


class Factors(NamedTuple):
    """What was found: a standardised rating, or the log odds of a choice, is ``offset + b_u + b_v + uᵀv``.

    Parameters
    ----------
    user, item : float [N, 1 + rank]
        Bias and factors of each entity.
    offset : float
    error : float
        Mean loss of ratings that were held out: squared error, or cross-entropy.
    """

    user: Tensor
    item: Tensor
    offset: float
    error: float

    def of(self, side: Side) -> Tensor:
        """float [N, 1 + rank]: those of a side."""
        return self.user if side == "user" else self.item


def pattern(vectors: Tensor) -> Tensor:
    """float [N, 1 + rank]: 1 and the factors, by which the other side's bias and factors enter a rating."""
    return torch.cat([torch.ones_like(vectors[:, :1]), vectors[:, 1:]], 1)


def standardisation(train: Dataset) -> tuple[float, float]:
    """Mean and deviation of the training ratings; 0 and 1 where feedback is implicit."""
    if train.scale.implicit:
        return 0.0, 1.0
    return float(train.rating.mean()), max(float(train.rating.std(correction=0)), 1e-3)


def factorise(
    train: Dataset,
    descent: Descent,
    similarity: Similarity,
    *,
    run: Run,
    negatives: int = 4,
    report: Callable[[int, Mapping[str, float]], None] = lambda epoch, values: None,
) -> Factors:
    r"""Fit biases and factors of all users and items to the training ratings, by `cosine_sgd_epoch_`.

    Minimises :math:`\sum L(\hat r, r) + \tfrac{\lambda}{2} (\|u\|^2 + \|v\|^2 + b_u^2 + b_v^2)` over the ratings, with
    :math:`\hat r = b + b_u + b_v + a \, s(u, v)` for standardised ratings and half the squared error, or for
    choices and the cross-entropy. With the dot product the scale a is 1, and b is 0. With the cosine both are learnt,
    and all rows begin near one direction: so a row with few ratings stays near the average one, where a random
    direction would be noise that no penalty shrinks.

    A twentieth of the ratings is held out to tell the number of epochs; then all are fitted for that many.

    Parameters
    ----------
    train : Dataset
    descent : Descent
    similarity : "cosine" or "dot"
    run : Run
    negatives : int
        Where feedback is implicit: pairs drawn at random from all, as not chosen, for each choice and epoch. With both
        their user and their item drawn, the log odds tell active users from others as well as popular items.
    report : function of epoch and figures, optional

    Returns
    -------
    Factors
        On the run's device; of the cosine, :math:`\sqrt a \, u / \|u\|` and :math:`\sqrt a \, v / \|v\|`.

    Raises
    ------
    TrainingError
        The loss is no finite number.
    """
    ratings = _Ratings(train, run, negatives)
    held_out = torch.rand(len(train), generator=torch.Generator().manual_seed(run.seed)) < HELD_OUT
    if held_out.all() or not held_out.any():
        held_out = torch.arange(len(train)) == 0
    found = _Model(train, descent, similarity, run)
    errors: list[float] = []
    test = ratings.pairs(held_out, 0)
    for epoch in run.epochs(descent.epochs, "factorise"):
        loss = found.step(ratings.pairs(~held_out, 1 + epoch), epoch)
        errors.append(found.error(test))
        if not math.isfinite(errors[-1]):
            raise TrainingError(
                f"factorisation: the loss is no finite number in epoch {epoch}: try a lower learning rate"
            )
        report(epoch, {"loss": loss, "valid_loss": errors[-1], "learning_rate": found.rate(epoch)})
        best = min(range(len(errors)), key=errors.__getitem__)
        if epoch - best >= descent.patience:
            break
    final = _Model(train, descent, similarity, run)
    for epoch in range(best + 1):
        final.step(ratings.pairs(torch.ones_like(held_out), 1 + epoch), epoch)
    return final.factors(errors[best])


class _Ratings:
    """The training ratings, standardised, or choices with pairs that were not chosen, drawn anew each time."""

    def __init__(self, train: Dataset, run: Run, negatives: int) -> None:
        mean, deviation = standardisation(train)
        self.user, self.item = train.user, train.item
        self.rating = (train.rating.to(run.dtype) - mean) / deviation
        self.users, self.items = len(train.users), len(train.items)
        self.negatives = negatives if train.scale.implicit else 0
        self.seed = run.seed

    def pairs(self, chosen: Tensor, draw: int) -> tuple[Tensor, Tensor, Tensor]:
        """User, item and rating of the interactions `chosen` (bool [n])."""
        user, item, rating = self.user[chosen], self.item[chosen], self.rating[chosen]
        if not self.negatives:
            return user, item, rating
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + draw) % (1 << 63))
        count = self.negatives * user.numel()
        users = torch.randint(self.users, (count,), generator=generator, dtype=user.dtype)
        items = torch.randint(self.items, (count,), generator=generator, dtype=item.dtype)
        return (
            torch.cat([user, users]),
            torch.cat([item, items]),
            torch.cat([rating, rating.new_zeros(count)]),
        )


class _Model:
    """Tables, biases, scale and bias, from the start."""

    def __init__(self, train: Dataset, descent: Descent, similarity: Similarity, run: Run) -> None:
        self.descent, self.similarity, self.run = descent, similarity, run
        self.implicit = train.scale.implicit
        generator = torch.Generator().manual_seed(run.seed)
        sizes = (len(train.users), len(train.items))
        deviation = SPREAD / math.sqrt(descent.rank)
        self.tables = [
            (deviation * torch.randn(size, descent.rank, generator=generator, dtype=torch.float64)).to(
                run.dtype
            )
            for size in sizes
        ]
        self.biases = [table.new_zeros(len(table)) for table in self.tables]
        self.head = self.tables[0].new_tensor([1.0, 0.0])
        if similarity == "cosine":
            for table in self.tables:
                table[:, 0] += 1
            self.head[1] = -1.0

    def rate(self, epoch: int) -> float:
        return self.descent.learning_rate * (1 + math.cos(math.pi * epoch / self.descent.epochs)) / 2

    def step(self, pairs: tuple[Tensor, Tensor, Tensor], epoch: int) -> float:
        """An epoch; its mean loss, each rating's before its step."""
        (users, items), (user_biases, item_biases) = self.tables, self.biases
        user, item, rating = pairs
        loss = cosine_sgd_epoch_(
            users,
            items,
            user_biases,
            item_biases,
            self.head,
            user,
            item,
            rating,
            lr=self.rate(epoch),
            l2=self.descent.l2,
            similarity=self.similarity,
            loss="logistic" if self.implicit else "squared",
            seed=epoch,
            head_lr=HEAD_RATE[self.similarity] * self.rate(epoch),
        )
        return float(loss)

    def error(self, pairs: tuple[Tensor, Tensor, Tensor]) -> float:
        user, item, rating = pairs
        found = self.factors(0.0, torch.device("cpu"))
        left, right = found.user[user], found.item[item]
        expected = found.offset + left[:, 0] + right[:, 0] + (left[:, 1:] * right[:, 1:]).sum(1)
        if self.implicit:
            return float(binary_cross_entropy_with_logits(expected, rating))
        return float((expected - rating).square().mean())

    def factors(self, error: float, device: torch.device | None = None) -> Factors:
        rows = self.tables
        if self.similarity == "cosine":
            scale = self.head[0].clamp(min=0).sqrt()
            rows = [scale * normalize(table, dim=1) for table in rows]
        vectors = [torch.cat([bias[:, None], row], 1) for bias, row in zip(self.biases, rows, strict=True)]
        user, item = (part.to(device or self.run.device) for part in vectors)
        return Factors(user, item, float(self.head[1]), error)

"""`Dataset`: two entity tables and the interactions between them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl
import torch
from torch import Tensor

from metarec.data.features import Features
from metarec.errors import ConfigError

Side = Literal["user", "item"]


def partner_side(side: Side) -> Side:
    """The other side."""
    return "item" if side == "user" else "user"


@dataclass(frozen=True)
class RatingScale:
    """What a rating can be and what it means.

    Parameters
    ----------
    low, high : float
        The least and the greatest rating.
    relevant_from : float
        Ratings at or above it are relevant to ranking metrics.
    step : float, optional
        Distance between neighbouring ratings; None where they are not evenly spaced.
    implicit : bool, default False
        Whether the data hold only what was chosen (every rating is 1) and not how it was liked.

    Raises
    ------
    ConfigError
        The numbers make no scale.
    """

    low: float
    high: float
    relevant_from: float
    step: float | None = None
    implicit: bool = False

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(
                    f"rating scale: {name} is {getattr(self, name):g}, expected a finite number"
                )
        if not self.low < self.high:
            raise ConfigError(f"rating scale: low is {self.low:g}, expected less than high, {self.high:g}")
        if not self.low <= self.relevant_from <= self.high:
            raise ConfigError(
                f"rating scale: relevant_from is {self.relevant_from:g}, expected {self.low:g} to {self.high:g}"
            )
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise ConfigError(
                f"rating scale: step is {self.step:g}, expected more than 0 and at most {self.high - self.low:g}"
            )

    @classmethod
    def for_implicit(cls) -> RatingScale:
        """The scale of data that only say what was chosen: every rating is 1."""
        return cls(low=0.0, high=1.0, relevant_from=1.0, implicit=True)

    def clip(self, value: Tensor) -> Tensor:
        """`value`, moved to the nearest end of the scale where it lies outside."""
        return value.clamp(self.low, self.high)


@dataclass(frozen=True)
class EncoderSpec:
    """Which encoder makes features of an attribute: its registered name and its options."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entities:
    """The users or the items of a data set: one row each.

    Parameters
    ----------
    ids : Series [N], integer or string, unique
        What the source calls them.
    attributes : DataFrame [N rows]
        Raw attributes, nulls where missing.
    encoders : mapping of attribute to EncoderSpec
        How attributes become features; one that is not named here goes by its type (`metarec.features`).
        An attribute mapped to None is for display only.
    display : str, optional
        The attribute that people know an entity by, such as a title.
    features : Features [N rows], optional
        The encoded attributes; set by `metarec.features.encode`.
    """

    ids: pl.Series
    attributes: pl.DataFrame
    encoders: Mapping[str, EncoderSpec | None] = field(default_factory=dict)
    display: str | None = None
    features: Features | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def names(self) -> pl.Series:
        """What people know the entities by: the display attribute, or the id where there is none."""
        ids = self.ids.cast(pl.String)
        return ids if self.display is None else self.attributes[self.display].cast(pl.String).fill_null(ids)

    def select(self, rows: Tensor) -> Entities:
        """The entities `rows` (int [M]), in that order."""
        index = rows.numpy()
        return replace(
            self,
            ids=self.ids[index],
            attributes=self.attributes[index],
            features=None if self.features is None else self.features.rows(rows),
        )


@dataclass(frozen=True)
class Dataset:
    """Interactions between users and items, as columns of equal length n.

    Parameters
    ----------
    name : str
        What the report calls it.
    users, items : Entities
        The two entity tables.
    user, item : int32 [n]
        Rows of the entity tables.
    rating : float32 [n]
        The rating, or 1 where feedback is implicit.
    time : int64 [n], optional
        When it happened, in the source's unit (larger is later).
    scale : RatingScale
        What the ratings mean.
    """

    name: str
    users: Entities
    items: Entities
    user: Tensor
    item: Tensor
    rating: Tensor
    scale: RatingScale
    time: Tensor | None = None

    def __len__(self) -> int:
        return self.rating.numel()

    def entities(self, side: Side) -> Entities:
        """The entity table of a side."""
        return self.users if side == "user" else self.items

    def rows(self, side: Side) -> Tensor:
        """int32 [n]: each interaction's row in the entity table of a side."""
        return self.user if side == "user" else self.item

    def save(self, path: str | Path) -> None:
        """Write the data set to the folder `path`, whole or not at all; a data set that is there is replaced.

        Encoded features are not written: `metarec.features` makes them again.

        Raises
        ------
        DataError
            The place holds something else or cannot be written.
        """
        from metarec.data.saving import save_dataset

        save_dataset(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Dataset:
        """The data set that `save` wrote to the folder `path`.

        Raises
        ------
        DataError
            The folder is missing, is no data set of metarec or a newer one, or a file of it is missing or damaged.
        """
        from metarec.data.saving import load_dataset

        return load_dataset(path)

    def take(self, interactions: Tensor) -> Dataset:
        """The same entities with only these interactions (int [m] or bool [n])."""
        return replace(
            self,
            user=self.user[interactions],
            item=self.item[interactions],
            rating=self.rating[interactions],
            time=None if self.time is None else self.time[interactions],
        )

    def restrict(self, users: Tensor, items: Tensor) -> Dataset:
        """Only these users and items (int rows, no repeats), renumbered in that order, and what lies between them."""
        user_row = torch.full((len(self.users),), -1, dtype=torch.int32)
        user_row[users.long()] = torch.arange(users.numel(), dtype=torch.int32)
        item_row = torch.full((len(self.items),), -1, dtype=torch.int32)
        item_row[items.long()] = torch.arange(items.numel(), dtype=torch.int32)
        user, item = user_row[self.user.long()], item_row[self.item.long()]
        kept = (user >= 0) & (item >= 0)
        return replace(
            self.take(kept),
            users=self.users.select(users),
            items=self.items.select(items),
            user=user[kept],
            item=item[kept],
        )

"""The entities that a recommender knows, by the names that people use."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl
import torch
from torch import Tensor

from metarec.data import Dataset, Features, Side
from metarec.errors import DataError, unknown_name


@dataclass(frozen=True)
class Catalogue:
    """The known entities of one side, in the rows that the algorithm was fitted with.

    Parameters
    ----------
    side : "user" or "item"
    ids : Series [N], int64 or string
        What the source calls them.
    names : Series [N], string
        What people call them; need not be unique.
    features : Features [N rows]
        Encoded attributes.
    popularity : int64 [N]
        Training interactions of each.
    """

    side: Side
    ids: pl.Series
    names: pl.Series
    features: Features
    popularity: Tensor

    @classmethod
    def of(cls, train: Dataset, side: Side) -> Catalogue:
        """The catalogue of one side of a training set."""
        entities = train.entities(side)
        return cls(
            side=side,
            ids=entities.ids.cast(pl.Int64 if entities.ids.dtype.is_integer() else pl.String).rename("id"),
            names=entities.names.rename("name"),
            features=Features.empty(len(entities)) if entities.features is None else entities.features,
            popularity=torch.bincount(train.rows(side), minlength=len(entities)),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, called: str | int) -> int:
        """The row of the entity with this id or, where no id is like it, this name.

        Raises
        ------
        DataError
            None has it (with the nearest right one), or several have this name (with their ids).
        """
        ids = self.ids.cast(pl.String)
        for column in (ids, self.names):
            rows = (column == str(called)).arg_true()
            if len(rows) == 1:
                return int(rows[0])
            if len(rows) > 1:
                raise DataError(
                    f"{self.side} {called!r} is the name of {len(rows)}: give one of the ids {_some(ids[rows])}"
                )
        raise DataError(unknown_name(self.side, str(called), {*ids, *self.names}))


def _some(ids: pl.Series, most: int = 5) -> str:
    return ", ".join(ids.head(most)) + (", …" if len(ids) > most else "")

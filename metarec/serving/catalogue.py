"""The entities that a recommender knows, by the names that people use."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

import polars as pl
import torch
from torch import Tensor

from metarec.data import Dataset, Features, Side
from metarec.errors import DataError


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
        raise DataError(f"unknown {self.side} {str(called)!r}: {self._likeliest(str(called))}")

    def _likeliest(self, called: str, most: int = 3) -> str:
        """Whom an unknown name may mean: those that have all its words, each word corrected, the most popular first."""
        words_of = [set(_words(f"{id} {name}")) for id, name in zip(self.ids, self.names, strict=True)]
        known = set().union(*words_of)
        wanted = {next(iter(get_close_matches(word, known, n=1)), word) for word in _words(called)}
        meant = [row for row, words in enumerate(words_of) if wanted and wanted <= words]
        if not meant:
            return f"none of the {len(self)} {self.side}s known has a name or an id like it"
        meant.sort(key=lambda row: -int(self.popularity[row]))
        shown = [
            str(self.ids[row])
            if str(self.ids[row]) == self.names[row]
            else f"{self.names[row]!r} ({self.ids[row]})"
            for row in meant[:most]
        ]
        more = f" or one of {len(meant) - most} more" if meant[most:] else ""
        return f"did you mean {' or '.join(shown)}{more}?"


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _some(ids: pl.Series, most: int = 5) -> str:
    return ", ".join(ids.head(most)) + (", …" if len(ids) > most else "")

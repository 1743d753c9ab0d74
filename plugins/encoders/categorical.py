"""One of some values, such as an occupation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Self

import polars as pl
import torch

from metarec import Range, hookimpl
from metarec.data import Features
from metarec.features import Encoder, as_strings, codes_of


class Categorical(Encoder):
    """One column per value, one for unseen values and one for missing ones; each row holds a single 1.

    Parameters
    ----------
    min_count : int, default 1
        A value that fewer training entities have counts as unseen, which lets the unseen column be learnt from rare
        values.
    """

    name = "categorical"

    def __init__(self, *, min_count: Annotated[int, Range(1, 1_000_000)] = 1) -> None:
        self.min_count = min_count

    def fit(self, column: pl.Series) -> Self:
        """Learn the values."""
        counts = as_strings(column).alias("value").drop_nulls().value_counts()
        self.values_ = counts.filter(pl.col("count") >= self.min_count)["value"].sort().to_list()
        return self

    @property
    def width(self) -> int:
        """The number of values and two."""
        return len(self.values_) + 2

    @property
    def known_values(self) -> Sequence[str]:
        """The values."""
        return self.values_

    def transform(self, column: pl.Series) -> Features:
        """Columns: the values in order, unseen, missing."""
        count = len(column)
        codes = codes_of(as_strings(column), self.values_)
        return Features.from_entries(
            torch.arange(count), codes, torch.ones(count), count=count, width=self.width
        )

    def table(self) -> Mapping[str, Any]:
        """``{"values": [string, …]}``: column j is ``values[j]``; the next is for unseen, the last for missing."""
        return {"values": self.values_}

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Self:
        """The encoder of those values."""
        encoder = cls()
        encoder.values_ = list(table["values"])
        return encoder


@hookimpl
def register_encoders(register: Callable[[type[Encoder]], None]) -> None:
    """Register `Categorical`."""
    register(Categorical)

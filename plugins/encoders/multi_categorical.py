"""Some of some values, such as genres."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Self

import numpy as np
import polars as pl
import torch

from metarec import Range, hookimpl
from metarec.data import Features
from metarec.errors import DataError
from metarec.features import Encoder, as_strings, codes_of, one_per_value


class MultiCategorical(Encoder):
    """One column per value, one for unseen values and one for missing lists.

    An entity with m different values has 1/√m in each one's column, so that every entity's features have length 1
    however many values it has. All of its unseen values count as one. An empty list is a missing one.

    Parameters
    ----------
    min_count : int, default 1
        A value that fewer training entities have counts as unseen, which lets the unseen column be learnt from rare
        values.
    """

    name = "multi-categorical"
    takes_lists = True

    def __init__(self, *, min_count: Annotated[int, Range(1, 1_000_000)] = 1) -> None:
        self.min_count = min_count

    def fit(self, column: pl.Series) -> Self:
        """Learn the values."""
        counts = _entries(column).drop_nulls().unique()["value"].value_counts()
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
        entries = _entries(column)
        codes = codes_of(entries["value"], self.values_)
        rows = torch.from_numpy(entries["row"].to_numpy(writable=True))
        pairs = torch.from_numpy(np.unique((rows * self.width + codes).numpy()))
        rows, codes = pairs // self.width, pairs % self.width
        weights = torch.bincount(rows, minlength=len(column))[rows].to(torch.float32).rsqrt()
        return Features.from_entries(rows, codes, weights, count=len(column), width=self.width)

    def table(self) -> Mapping[str, Any]:
        """``{"values": [string, …]}``: column j is ``values[j]``; the next is for unseen, the last for missing."""
        return {"values": self.values_}

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Self:
        """The encoder of those values."""
        encoder = cls()
        encoder.values_ = list(table["values"])
        return encoder


def _entries(column: pl.Series) -> pl.DataFrame:
    """``row`` and ``value``, one line per value of each list; a missing or empty list has one line without a value."""
    if column.dtype == pl.Null:
        column = column.cast(pl.List(pl.Null))
    if not isinstance(column.dtype, pl.List | pl.Array):
        raise DataError(f"attribute {column.name!r}: found {column.dtype}, expected lists of strings")
    lines = one_per_value(column.cast(pl.List(column.dtype.inner)).list.drop_nulls())
    return lines.with_columns(as_strings(lines["value"].alias(column.name)).alias("value"))


@hookimpl
def register_encoders(register: Callable[[type[Encoder]], None]) -> None:
    """Register `MultiCategorical`."""
    register(MultiCategorical)

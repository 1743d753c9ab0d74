"""The base of encoder plugins: one attribute in, some columns of features out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import polars as pl
import torch
from torch import Tensor

from metarec.data import Features
from metarec.errors import DataError


class Encoder(ABC):
    """Makes features of one attribute. Options are keyword-only and typed; what `fit` learns ends in ``_``.

    Attributes
    ----------
    name : str
        What a data set calls it in an `EncoderSpec`.
    takes_lists : bool
        Whether an entity's attribute is a list of values.
    """

    name: ClassVar[str]
    takes_lists: ClassVar[bool] = False

    @abstractmethod
    def fit(self, column: pl.Series) -> Self:
        """Learn from the training entities' attribute (nulls where missing); return self."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Number of feature columns."""

    @abstractmethod
    def transform(self, column: pl.Series) -> Features:
        """Encode any entities' attribute: [N] values to `Features` [N, width].

        Unseen and missing values have columns of their own.
        """

    @property
    def known_values(self) -> Sequence[str] | None:
        """The values that it tells apart; None, the default, where they are not a list, such as numbers."""
        return None

    @abstractmethod
    def table(self) -> Mapping[str, Any]:
        """What was fitted, as JSON values that any language can read and `from_table` restores."""

    @classmethod
    @abstractmethod
    def from_table(cls, table: Mapping[str, Any]) -> Self:
        """The fitted encoder that `table` describes."""


def as_strings(column: pl.Series) -> pl.Series:
    """The values of a column of strings, categories, booleans or integers as strings.

    Raises
    ------
    DataError
        The column holds something else; the line names the attribute.
    """
    dtype = column.dtype
    if dtype == pl.Boolean or dtype.is_integer() or dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null):
        return column.cast(pl.String)
    raise DataError(f"attribute {column.name!r}: found {dtype}, expected strings, integers or booleans")


def as_numbers(column: pl.Series) -> pl.Series:
    """The values of a column of numbers, or of strings that spell numbers, as float64.

    Raises
    ------
    DataError
        A value is no finite number; the line names the attribute and the value.
    """
    dtype = column.dtype
    if not (dtype.is_numeric() or dtype in (pl.String, pl.Null)):
        raise DataError(f"attribute {column.name!r}: found {dtype}, expected numbers")
    numbers = column.cast(pl.Float64, strict=False)
    wrong = column.filter(column.is_not_null() & ~numbers.is_finite().fill_null(False))
    if len(wrong):
        raise DataError(f"attribute {column.name!r}: found {wrong[0]!r}, expected a finite number")
    return numbers


def codes_of(strings: pl.Series, values: Sequence[str]) -> Tensor:
    """int64 [N]: the place of each string in `values`, ``len(values)`` where unseen, ``len(values) + 1`` where null."""
    known = pl.Series(values, dtype=pl.String)
    codes = strings.replace_strict(known, range(len(values)), default=len(values), return_dtype=pl.Int64)
    return torch.from_numpy(codes.set(strings.is_null(), len(values) + 1).to_numpy(writable=True))


def one_per_value(lists: pl.Series) -> pl.DataFrame:
    """Columns ``row`` and ``value``: one line per value of each list; an empty or null one has a line with null."""
    values = lists.to_frame("value").select(pl.when(pl.col("value").list.len() > 0).then("value"))
    return values.with_row_index("row").cast({"row": pl.Int64}).explode("value")

"""The base of encoder plugins: one attribute in, some columns of features out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import polars as pl

from metarec.data import Features


class Encoder(ABC):
    """Makes features of one attribute. Options are keyword-only and typed; what `fit` learns ends in ``_``.

    Attributes
    ----------
    name : str
        What a data set calls it in an `EncoderSpec`.
    """

    name: ClassVar[str]

    @abstractmethod
    def fit(self, column: pl.Series) -> Self:
        """Learn from the training entities' attribute (nulls where missing); return self."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Number of feature columns."""

    @abstractmethod
    def transform(self, column: pl.Series) -> Features:
        """Encode any entities' attribute: [N] values to `Features` [N, width]; unseen and missing values have their own."""

    @abstractmethod
    def table(self) -> Mapping[str, Any]:
        """What was fitted, as JSON values that any language can read and `from_table` restores."""

    @classmethod
    @abstractmethod
    def from_table(cls, table: Mapping[str, Any]) -> Self:
        """The fitted encoder that `table` describes."""

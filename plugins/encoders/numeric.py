"""A number, such as a price."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import polars as pl
import torch

from metarec import hookimpl
from metarec.data import Features
from metarec.features import Encoder, as_numbers


class Numeric(Encoder):
    """The standard score ``(x − mean) / deviation`` and a flag for missing values.

    Mean and deviation (of the population) are the training entities'; a constant attribute has score 0. A missing
    value has score 0 and flag 1.
    """

    name = "numeric"
    width = 2

    def fit(self, column: pl.Series) -> Self:
        """Learn mean and deviation."""
        numbers = as_numbers(column).drop_nulls()
        self.mean_ = float(numbers.mean() or 0.0)  # type: ignore[arg-type]
        deviation = float((numbers - self.mean_).pow(2).mean() or 0.0) ** 0.5  # type: ignore[arg-type]
        self.deviation_ = deviation if deviation > 1e-12 * abs(self.mean_) else 1.0
        return self

    def transform(self, column: pl.Series) -> Features:
        """Columns: score, missing."""
        count = len(column)
        numbers = as_numbers(column)
        missing = torch.from_numpy(numbers.is_null().to_numpy(writable=True))
        score = torch.from_numpy(
            ((numbers - self.mean_) / self.deviation_).fill_null(1.0).to_numpy(writable=True)
        )
        return Features.from_entries(
            torch.arange(count), missing.long(), score.to(torch.float32), count=count, width=self.width
        )

    def table(self) -> Mapping[str, Any]:
        """``{"mean": number, "deviation": number}``."""
        return {"mean": self.mean_, "deviation": self.deviation_}

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Self:
        """The encoder with that mean and deviation."""
        encoder = cls()
        encoder.mean_, encoder.deviation_ = float(table["mean"]), float(table["deviation"])
        return encoder


@hookimpl
def register_encoders(register: Callable[[type[Encoder]], None]) -> None:
    """Register `Numeric`."""
    register(Numeric)

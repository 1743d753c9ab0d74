"""A number whose effect is not straight, such as an age."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Annotated, Any, Self

import numpy as np
import polars as pl
import torch

from metarec import Range, hookimpl
from metarec.data import Features
from metarec.errors import ConfigError
from metarec.features import Encoder, as_numbers


class Binned(Encoder):
    """One column per bin and one for missing values; each row holds a single 1.

    Bin j holds ``edges[j − 1] ≤ x < edges[j]``; the first and the last are open, so that no value is unseen.

    Parameters
    ----------
    bins : int, default 8
        How many bins to make, each of as many training entities as ties allow, where no edges are given.
    edges : list of float, optional
        Rising borders between the bins.
    """

    name = "binned"

    def __init__(
        self, *, bins: Annotated[int, Range(1, 10_000)] = 8, edges: list[float] | None = None
    ) -> None:
        self.bins = bins
        self.edges = edges

    def fit(self, column: pl.Series) -> Self:
        """Learn the edges, where they are not given.

        Raises
        ------
        ConfigError
            Edges that are not finite and rising.
        """
        numbers = as_numbers(column).drop_nulls()
        if self.edges is not None:
            self.edges_ = _checked(self.edges)
        elif len(numbers) == 0:
            self.edges_ = []
        else:
            ordered = numbers.sort().to_numpy()
            starts = np.arange(1, self.bins) * len(ordered) // self.bins
            edges = np.unique(ordered[starts])
            self.edges_ = edges[edges > ordered[0]].tolist()
        return self

    @property
    def width(self) -> int:
        """The number of bins and one."""
        return len(self.edges_) + 2

    def transform(self, column: pl.Series) -> Features:
        """Columns: the bins in order, missing."""
        count = len(column)
        numbers = as_numbers(column)
        bins = np.searchsorted(np.array(self.edges_), numbers.fill_null(0.0).to_numpy(), side="right")
        bins[numbers.is_null().to_numpy()] = len(self.edges_) + 1
        codes = torch.from_numpy(bins)
        return Features.from_entries(
            torch.arange(count), codes, torch.ones(count), count=count, width=self.width
        )

    def table(self) -> Mapping[str, Any]:
        """``{"edges": [number, …]}``: the column of x is the number of edges not above it; the last is for missing."""
        return {"edges": self.edges_}

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Self:
        """The encoder with those edges."""
        encoder = cls()
        encoder.edges_ = [float(edge) for edge in table["edges"]]
        return encoder


def _checked(edges: list[float]) -> list[float]:
    if not np.isfinite(edges).all() or any(low >= high for low, high in pairwise(edges)):
        raise ConfigError(f"encoder 'binned': edges is {edges}, expected finite numbers that rise")
    return edges


@hookimpl
def register_encoders(register: Callable[[type[Encoder]], None]) -> None:
    """Register `Binned`."""
    register(Binned)

"""A list of numbers, such as what a network made of an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Self

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from metarec import Range, hookimpl
from metarec.data import Features
from metarec.errors import DataError
from metarec.features import Encoder

FLAT = 1e-10


class Vector(Encoder):
    """Principal components, whitened: the directions in which vectors differ most, as standard scores.

    ``Dᵀ(x − m) / √k`` with the mean m of the training entities' vectors and the k directions D of their greatest
    variances, each divided by its deviation: so the features of the training entities are uncorrelated, and of length 1
    on average, whatever the vectors' units. There are fewer where the vectors lie in fewer dimensions. A missing vector
    has zeros, and 1 in a column of its own.

    Parameters
    ----------
    components : int, default 32
        k, at most the length of the vectors.

    References
    ----------
    Jolliffe 2002. Principal component analysis, section 2.3.
    """

    name = "vector"
    takes_lists = True

    def __init__(self, *, components: Annotated[int, Range(1, 100_000)] = 32) -> None:
        self.components = components

    def fit(self, column: pl.Series) -> Self:
        """Learn mean and directions."""
        lengths = _lists(column).drop_nulls().list.len()
        vectors = _vectors(column, int(lengths.max() or 0))  # type: ignore[arg-type]
        vectors = vectors[~np.isnan(vectors).any(1)]
        self.mean_ = vectors.mean(0) if len(vectors) else np.zeros(vectors.shape[1])
        away = vectors - self.mean_
        variance, direction = np.linalg.eigh(away.T @ away / max(len(vectors), 1))
        most = variance.max(initial=0.0)
        chosen = np.flatnonzero(variance > FLAT * max(most, FLAT))[::-1][: self.components]
        self.directions_ = (direction[:, chosen] / np.sqrt(variance[chosen] * max(len(chosen), 1))).T
        return self

    @property
    def width(self) -> int:
        """The number of directions and one."""
        return len(self.directions_) + 1

    def transform(self, column: pl.Series) -> Features:
        """Columns: the scores along the directions, missing."""
        scores = (_vectors(column, len(self.mean_)) - self.mean_) @ self.directions_.T
        missing = column.is_null().to_numpy()
        features = np.column_stack([np.where(missing[:, None], 0.0, scores), missing])
        row, place = np.nonzero(features)
        return Features.from_entries(
            torch.from_numpy(row),
            torch.from_numpy(place),
            torch.from_numpy(features[row, place]).to(torch.float32),
            count=len(column),
            width=self.width,
        )

    def table(self) -> Mapping[str, Any]:
        """``{"mean": [number, …], "directions": [[number, …], …]}``: a score is a direction's product with x − mean."""
        return {"mean": self.mean_.tolist(), "directions": self.directions_.tolist()}

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Self:
        """The encoder with that mean and those directions."""
        encoder = cls()
        encoder.mean_ = np.array(table["mean"], dtype=np.float64)
        shape = len(table["directions"]), len(encoder.mean_)
        encoder.directions_ = np.array(table["directions"], dtype=np.float64).reshape(shape)
        return encoder


def _lists(column: pl.Series) -> pl.Series:
    dtype = column.dtype
    if dtype == pl.Null:
        return column.cast(pl.List(pl.Float64))
    if not isinstance(dtype, pl.List | pl.Array) or not (dtype.inner.is_numeric() or dtype.inner == pl.Null):
        raise DataError(f"attribute {column.name!r}: found {dtype}, expected lists of numbers")
    return column.cast(pl.List(pl.Float64))


def _vectors(column: pl.Series, length: int) -> NDArray[np.float64]:
    """float64 [N, length], NaN where there is no vector.

    Raises
    ------
    DataError
        A vector of another length, or with a value that is no finite number; the line names the attribute.
    """
    lists = _lists(column)
    lengths = lists.list.len()
    if (wrong := lengths.filter(lengths != length)).len():
        raise DataError(f"attribute {column.name!r}: found a list of {wrong[0]} numbers, expected {length}")
    vectors = np.full((len(column), length), np.nan)
    if length:
        there = lists.is_not_null().to_numpy()
        numbers = lists.drop_nulls().explode()
        if (bad := numbers.filter(~numbers.is_finite().fill_null(False))).len():
            raise DataError(f"attribute {column.name!r}: found {bad[0]}, expected finite numbers")
        vectors[there] = numbers.to_numpy().reshape(-1, length)
    return vectors


@hookimpl
def register_encoders(register: Callable[[type[Encoder]], None]) -> None:
    """Register `Vector`."""
    register(Vector)

"""Ratings in one file, and what is known of users and items in two more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from metarec import hookimpl
from metarec.data import (
    Columns,
    Dataset,
    Duplicates,
    Layout,
    Outliers,
    Policies,
    RatingScale,
    Reader,
    Side,
    Table,
    build_dataset,
    read_parquet,
    read_text,
    read_text_interactions,
    upper_quarter,
    with_numbers,
)
from metarec.errors import ConfigError, DataError, unknown_name


class TableReader(Reader):
    """Ratings from a CSV, TSV or Parquet file, with a file of users and a file of items where there are such.

    Text files have a header and may be gzipped. In the files of users and items, every column beside the ids is an
    attribute; text of which all values are numbers (without leading zeros) becomes numbers. The options `low`, `high`,
    `step` and `relevant_from` set the rating scale; without, it is that of the ratings found.

    Parameters
    ----------
    path : Path
        The ratings; ``.parquet`` is read as such, anything else as text.
    users, items : Path, optional
        The entity tables. Their ids are in the column of the same name as in the ratings.
    user, item, rating : str
        What the columns are called; by default so.
    time : str, optional
        The column with times: numbers, or dates as in ISO 8601.
    feedback : "explicit" or "implicit", default "explicit"
        Whether the ratings count, or only that there is one; there need not be a column of ratings then.
    low, high : float, optional
        The least and the greatest rating.
    step : float, optional
        Distance between neighbouring ratings, where they are evenly spaced.
    relevant_from : float, optional
        Ratings at or above it are relevant; by default those in the upper quarter of the scale.
    duplicates : "error", "last" or "mean", default "error"
        Where a user rated an item more than once: refuse, keep the latest, or take the mean.
    outliers : "error", "drop" or "clip", default "error"
        Where a rating is not between `low` and `high`: refuse, leave out, or move it to the nearer end.
    separator : str, optional
        Between fields of text; by default the one of ``:: tab , ; |`` that is most frequent in the header.
    encoding : str, default "utf-8"
        Of text.
    vectors : mapping of attribute to Path, optional
        Attributes of items that are vectors, such as ``{"image": "image.npy"}``: matrices as NumPy saves them, whose
        row n, from 0, belongs to the n-th line of `items`, or without that to the item with the id n.
    lists : mapping of attribute to separator, optional
        Attributes of text that hold several values each: ``{"genres": "|"}``.
    title : str, optional
        The attribute that people know an item by.
    """

    name = "table"

    def __init__(
        self,
        *,
        path: Path,
        users: Path | None = None,
        items: Path | None = None,
        user: str = "user",
        item: str = "item",
        rating: str = "rating",
        time: str | None = None,
        feedback: Literal["explicit", "implicit"] = "explicit",
        low: float | None = None,
        high: float | None = None,
        step: float | None = None,
        relevant_from: float | None = None,
        duplicates: Duplicates = "error",
        outliers: Outliers = "error",
        separator: str | None = None,
        encoding: str = "utf-8",
        vectors: Mapping[str, Path] = {},
        lists: Mapping[str, str] = {},
        title: str | None = None,
    ) -> None:
        self.path = path
        self.users = users
        self.items = items
        self.user = user
        self.item = item
        self.rating = rating
        self.time = time
        self.feedback = feedback
        self.low = low
        self.high = high
        self.step = step
        self.relevant_from = relevant_from
        self.duplicates = duplicates
        self.outliers = outliers
        self.separator = separator
        self.encoding = encoding
        self.vectors = vectors
        self.lists = lists
        self.title = title

    def read(self) -> Dataset:
        """Read the files."""
        explicit = self.feedback == "explicit"
        columns = Columns(self.user, self.item, self.rating if explicit else None, self.time)
        scale = self._scale() if explicit else None
        dataset = build_dataset(
            self.path.name.partition(".")[0],
            self._interactions(columns),
            columns=columns,
            entities=self._entities(columns),
            scale=scale,
            policies=Policies(self.duplicates, self.outliers),
            display={} if self.title is None else {"item": self.title},
        )
        if scale is None and explicit and self.relevant_from is not None:
            dataset = replace(dataset, scale=replace(dataset.scale, relevant_from=self.relevant_from))
        return dataset

    def _scale(self) -> RatingScale | None:
        if self.low is None and self.high is None and self.step is None:
            return None
        if self.low is None or self.high is None:
            raise ConfigError(
                "data set 'table': expected both options low and high, or neither of low, high and step"
            )
        scale = RatingScale(self.low, self.high, relevant_from=self.high, step=self.step)
        relevant_from = self.relevant_from
        if relevant_from is None:
            relevant_from = upper_quarter(self.low, self.high, self.step)
        return replace(scale, relevant_from=relevant_from)

    def _interactions(self, columns: Columns) -> Table:
        if _is_parquet(self.path):
            return read_parquet(self.path, columns.names)
        return read_text_interactions(self.path, columns, self._layout)

    def _entities(self, columns: Columns) -> dict[Side, Table]:
        paths: dict[Side, Path | None] = {"user": self.users, "item": self.items}
        tables = {side: self._attributes(path) for side, path in paths.items() if path is not None}
        for name, path in self.vectors.items():
            tables["item"] = _with_vectors(tables.get("item"), columns.item, name, path)
        known = {name for table in tables.values() for name in table.frame.columns}
        for name in self.lists:
            if name not in known:
                raise ConfigError(f"data set 'table', option lists: {unknown_name('column', name, known)}")
        if self.title is not None and self.items is None:
            raise ConfigError(
                f"data set 'table': title is {self.title!r}, expected a column of items, which are not given"
            )
        return tables

    def _attributes(self, path: Path) -> Table:
        if _is_parquet(path):
            return self._with_lists(read_parquet(path))
        return with_numbers(self._with_lists(read_text(path, layout=self._layout)))

    def _with_lists(self, table: Table) -> Table:
        """The same table, each column that `lists` names cut at its separators."""
        texts = {name: table.frame[name] for name in self.lists if name in table.frame.columns}
        for name, text in texts.items():
            if text.dtype != pl.String:
                raise DataError(
                    f"{table.source}, column {name!r}: found {text.dtype}, expected text with several values"
                )
        cut = [text.str.split(self.lists[name]) for name, text in texts.items()]
        return replace(table, frame=table.frame.with_columns(cut))

    @property
    def _layout(self) -> Layout:
        return Layout(self.separator, self.encoding)


def _with_vectors(table: Table | None, key: str, name: str, path: Path) -> Table:
    """The items' table with one more attribute, or without a table one of the items 0, 1, …"""
    matrix = _matrix(path)
    if table is None:
        table = Table(pl.DataFrame({key: np.arange(len(matrix))}), str(path))
    if len(matrix) != table.frame.height:
        raise DataError(
            f"{path}: has {len(matrix)} rows, expected {table.frame.height}, as many as {table.source} has"
        )
    return replace(table, frame=table.frame.with_columns(pl.Series(name, matrix)))


def _matrix(path: Path) -> NDArray[np.float32]:
    """float32 [rows, columns]."""
    try:
        matrix = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError):
        raise DataError(f"{path}: is no matrix as NumPy saves it (.npy)") from None
    if matrix.ndim != 2 or not np.issubdtype(matrix.dtype, np.number) or np.iscomplexobj(matrix):
        raise DataError(
            f"{path}: holds {matrix.dtype} of shape {list(matrix.shape)}, expected a matrix of numbers"
        )
    numbers: NDArray[np.float32] = matrix.astype(np.float32)
    return numbers


def _is_parquet(path: Path) -> bool:
    return path.suffix == ".parquet"


@hookimpl
def register_datasets(register: Callable[[type[Reader]], None]) -> None:
    """Register `TableReader`."""
    register(TableReader)

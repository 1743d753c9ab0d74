"""RecBole's atomic files: tab-separated, each column's type in the header."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import polars as pl

from metarec import hookimpl
from metarec.data import (
    Columns,
    Dataset,
    Duplicates,
    Layout,
    Policies,
    Reader,
    Side,
    Table,
    build_dataset,
    read_header,
    read_text,
    read_text_interactions,
    typed,
)
from metarec.errors import DataError, unknown_name

TYPES: dict[str, type[pl.DataType]] = {
    "token": pl.String,
    "token_seq": pl.String,
    "float": pl.Float64,
    "float_seq": pl.String,
}
LAYOUT = Layout("\t", quote=None)


class RecBole(Reader):
    """A folder of RecBole's atomic files: ``NAME.inter``, and ``NAME.user`` and ``NAME.item`` where there are such.

    A header names each column and its type, such as ``user_id:token``: ``token`` is a category, ``token_seq`` several
    of them with spaces between, ``float`` a number and ``float_seq`` several. The rating scale is that of the ratings.

    Parameters
    ----------
    path : Path
        The folder.
    user, item, rating, time : str
        What the columns are called; by default ``user_id``, ``item_id``, ``rating`` and ``timestamp``. Times are read
        where there is such a column.
    feedback : "explicit" or "implicit", default "explicit"
        Whether the ratings count, or only that there is one; there need not be a column of ratings then.
    duplicates : "error", "last" or "mean", default "error"
        Where a user rated an item more than once: refuse, keep the latest, or take the mean.
    title : str, optional
        The attribute that people know an item by.

    References
    ----------
    Zhao et al. 2021, RecBole: towards a unified, comprehensive and efficient framework for recommendation algorithms.
    """

    name = "recbole"

    def __init__(
        self,
        *,
        path: Path,
        user: str = "user_id",
        item: str = "item_id",
        rating: str = "rating",
        time: str = "timestamp",
        feedback: Literal["explicit", "implicit"] = "explicit",
        duplicates: Duplicates = "error",
        title: str | None = None,
    ) -> None:
        self.path = path
        self.user = user
        self.item = item
        self.rating = rating
        self.time = time
        self.feedback = feedback
        self.duplicates = duplicates
        self.title = title

    def read(self) -> Dataset:
        """Read the files."""
        inter = self._find_interactions()
        types = _types(inter)
        columns = Columns(
            self.user,
            self.item,
            self.rating if self.feedback == "explicit" else None,
            self.time if self.time in types else None,
        )
        titles: dict[Side, str] = {} if self.title is None else {"item": self.title}
        files: dict[Side, Path] = {"user": inter.with_suffix(".user"), "item": inter.with_suffix(".item")}
        return build_dataset(
            inter.stem,
            read_text_interactions(inter, columns, replace(LAYOUT, names=tuple(types))),
            columns=columns,
            entities={
                side: _entities(file, columns.of(side), titles.get(side))
                for side, file in files.items()
                if file.exists()
            },
            policies=Policies(self.duplicates),
            display=titles,
        )

    def _find_interactions(self) -> Path:
        if not self.path.is_dir():
            raise DataError(f"{self.path}: no such folder, expected one with a file NAME.inter")
        found = sorted(self.path.glob("*.inter"))
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise DataError(f"{self.path}: found {names}, expected one file NAME.inter")
        return found[0]


def _entities(path: Path, key: str, title: str | None) -> Table:
    types = _types(path)
    read_as = {name: TYPES[kind] for name, kind in types.items()} | {key: pl.String}
    table = read_text(path, read_as, replace(LAYOUT, names=tuple(types)))
    for name, kind in types.items():
        if kind == "token_seq" and name not in (key, title):
            table = replace(table, frame=table.frame.with_columns(pl.col(name).str.split(" ")))
        elif kind == "float_seq":
            table = _with_components(table, name)
    return table


def _with_components(table: Table, name: str) -> Table:
    """The same table, a column of several numbers replaced by one column for each: NAME_0, NAME_1, …"""
    sequences = table.frame[name].str.split(" ")
    width = int(sequences.list.len().max() or 0)  # type: ignore[arg-type]
    table.check(sequences.list.len() != width, name, f"{width} numbers as elsewhere")
    parts = [sequences.list.get(place).alias(f"{name}_{place}") for place in range(width)]
    table = replace(table, frame=table.frame.drop(name).with_columns(parts))
    for part in parts:
        table = typed(table, part.name, pl.Float64)
    return table


def _types(path: Path) -> dict[str, str]:
    """The type of each column, by its name."""
    types = {}
    for field in read_header(path, LAYOUT):
        name, _, kind = field.partition(":")
        if kind not in TYPES:
            raise DataError(f"{path}, line 1, column {field!r}: {unknown_name('type', kind, TYPES)}")
        types[name] = kind
    return types


@hookimpl
def register_datasets(register: Callable[[type[Reader]], None]) -> None:
    """Register `RecBole`."""
    register(RecBole)

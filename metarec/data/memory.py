"""From what is in memory already to a data set: pandas, polars, Arrow, SciPy sparse matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from metarec.data.building import SIDES, Columns, Policies, Table, build_dataset
from metarec.data.dataset import Dataset, EncoderSpec, RatingScale, Side
from metarec.errors import DataError


def from_frame(
    interactions: Any,
    columns: Columns = Columns(),
    *,
    users: Any = None,
    items: Any = None,
    name: str = "frame",
    scale: RatingScale | None = None,
    policies: Policies = Policies(),
    encoders: Mapping[Side, Mapping[str, EncoderSpec | None]] | None = None,
    display: Mapping[Side, str] | None = None,
) -> Dataset:
    """Make a data set of frames: ``from_frame(ratings, Columns("userId", "movieId"), items=movies)``.

    A frame is a polars or pandas DataFrame (whose index is left out) or an Arrow table.

    Parameters
    ----------
    interactions : frame
    columns : Columns
        What the frames call the columns; ``rating=None`` makes feedback implicit.
    users, items : frame, optional
        Entity tables: the ids, in the column that `columns` names, and attributes.
    name : str, default "frame"
        What the report calls the data set.
    scale, policies, encoders, display
        As for `build_dataset`.

    Raises
    ------
    DataError
        One line naming frame, row or column, what was found and what was expected.
    """
    entities = {side: frame for side, frame in zip(SIDES, (users, items), strict=True) if frame is not None}
    return build_dataset(
        name,
        _table(interactions, "interactions"),
        columns=columns,
        entities={side: _table(frame, f"{side}s") for side, frame in entities.items()},
        scale=scale,
        policies=policies,
        encoders=encoders,
        display=display,
    )


def from_matrix(
    matrix: Any,
    *,
    users: Any = None,
    items: Any = None,
    name: str = "matrix",
    implicit: bool = False,
    scale: RatingScale | None = None,
    policies: Policies = Policies(),
    encoders: Mapping[Side, Mapping[str, EncoderSpec | None]] | None = None,
    display: Mapping[Side, str] | None = None,
) -> Dataset:
    """Make a data set of a SciPy sparse matrix or array with one row per user and one column per item.

    What the matrix stores are the interactions, zeros too; as in SciPy, entries that it stores at one place are summed.
    Users and items are called by their row and column, from 0; those that nothing is stored of are there as well.

    Parameters
    ----------
    matrix : sparse [users, items]
    users, items : frame, optional
        Attributes, one row per user (or item), in the order of the matrix.
    name : str, default "matrix"
        What the report calls the data set.
    implicit : bool, default False
        Whether what is stored counts as chosen, whatever its value.
    scale, policies, encoders, display
        As for `build_dataset`.

    Raises
    ------
    DataError
        One line: what was found and what was expected.
    """
    if not hasattr(matrix, "tocoo") or len(matrix.shape) != 2:
        raise DataError(f"matrix: found {_kind(matrix)}, expected a SciPy sparse matrix with two dimensions")
    entries = matrix.tocsr().tocoo()
    columns = Columns("user", "item", None if implicit else "rating")
    interactions = {"user": entries.row, "item": entries.col} | ({} if implicit else {"rating": entries.data})
    entities = {
        side: _numbered(frame, side, count)
        for side, frame, count in zip(SIDES, (users, items), matrix.shape, strict=True)
    }
    return build_dataset(
        name,
        Table(pl.DataFrame(interactions), "matrix", lambda row: f"({entries.row[row]}, {entries.col[row]})"),
        columns=columns,
        entities=entities,
        scale=scale,
        policies=policies,
        encoders=encoders,
        display=display,
    )


def _numbered(frame: Any, side: Side, count: int) -> Table:
    """The attributes of a side's entities, which are called 0, 1, …"""
    source = f"{side}s"
    ids = pl.int_range(count, eager=True).alias(side)
    if frame is None:
        return Table(ids.to_frame(), source)
    table = _table(frame, source)
    if table.frame.height != count:
        raise DataError(f"{source}: found {table.frame.height} rows, expected {count} as in the matrix")
    if side in table.frame.columns:
        raise DataError(
            f"{source}: found a column {side!r}, expected attributes only (rows say which {side})"
        )
    return Table(table.frame.with_columns(ids), source)


def _table(frame: Any, source: str) -> Table:
    if isinstance(frame, pl.DataFrame):
        return Table(frame, source)
    if type(frame).__module__.partition(".")[0] == "pandas" and hasattr(frame, "columns"):
        return Table(_from_pandas(frame, source), source)
    if not hasattr(frame, "__arrow_c_stream__") or isinstance(frame, pl.Series):
        raise DataError(
            f"{source}: found {_kind(frame)}, expected a polars or pandas DataFrame, or an Arrow table"
        )
    try:
        return Table(pl.DataFrame(frame), source)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{source}: {str(error).splitlines()[0]}") from None


def _from_pandas(frame: Any, source: str) -> pl.DataFrame:
    repeated = frame.columns[frame.columns.duplicated()]
    if len(repeated):
        raise DataError(f"{source}: column {repeated[0]!r} stands there twice, expected once")
    columns = []
    for name in frame.columns:
        try:
            columns.append(pl.Series(str(name), frame[name]))
        except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
            problem = str(error).splitlines()[0]
            raise DataError(f"{source}, column {name!r}: {problem}; expected values of one type") from None
    return pl.DataFrame(columns)


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")

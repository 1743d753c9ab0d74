"""From frames to a checked `Dataset`: what all readers share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarec.data.dataset import Dataset, EncoderSpec, Entities, RatingScale, Side
from metarec.errors import DataError, unknown_name

Duplicates = Literal["error", "last", "mean"]
Outliers = Literal["error", "drop", "clip"]
SIDES: tuple[Side, ...] = get_args(Side)

INTEGER = r"^(?:0|-?[1-9][0-9]*)$"

FINEST_SCALE = 101
"""An inferred scale has at most so many steps; beyond, ratings count as continuous."""


@dataclass(frozen=True)
class Table:
    """A frame, and how people find its rows again.

    Parameters
    ----------
    frame : DataFrame
    source : str
        What messages call it, such as a file's name.
    place : callable, optional
        Where a row (from 0) stands in the source, such as ``"line 7"``; rows are counted from 1 where it is not given.
    """

    frame: pl.DataFrame
    source: str
    place: Callable[[int], str] = field(default=lambda row: f"row {row + 1}", repr=False)

    def at(self, row: int, column: str) -> str:
        """``source, place, column``, as a message begins."""
        return f"{self.source}, {self.place(row)}, column {column!r}"

    def take(self, rows: Tensor) -> Table:
        """Only these rows (int64 [m]), each still found at its place in the source."""
        return Table(
            self.frame[rows.numpy()],
            self.source,
            lambda row: self.place(int(rows[row])),
        )

    def column(self, name: str) -> pl.Series:
        """One column.

        Raises
        ------
        DataError
            There is none of that name; the line gives the nearest one.
        """
        if name not in self.frame.columns:
            raise DataError(f"{self.source}: {unknown_name('column', name, self.frame.columns)}")
        return self.frame[name]

    def check(self, wrong: pl.Series | Tensor, column: str, expected: str) -> None:
        """Refuse the first row that is `wrong` (bool [n]), with its place, what stands there and what was expected.

        Raises
        ------
        DataError
            There is one.
        """
        wrong = pl.Series(wrong.numpy()) if isinstance(wrong, Tensor) else wrong
        if wrong.any():
            row = _first(wrong)
            raise DataError(
                f"{self.at(row, column)}: found {_shown(self.frame[column][row])}, expected {expected}"
            )


@dataclass(frozen=True)
class Columns:
    """What the source calls the columns of an interaction.

    Parameters
    ----------
    user, item : str
        Ids: integers or strings. Entity tables have the ids of their entities in a column of the same name.
    rating : str or None
        None where feedback is implicit: the data only say what was chosen.
    time : str, optional
        When it happened: numbers (rounded down), or dates (which become seconds since 1970).
    """

    user: str = "user"
    item: str = "item"
    rating: str | None = "rating"
    time: str | None = None

    def of(self, side: Side) -> str:
        """The column with the ids of a side."""
        return self.user if side == "user" else self.item

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [name for name in (self.user, self.item, self.rating, self.time) if name is not None]


@dataclass(frozen=True)
class Policies:
    """What to do with interactions that do not fit.

    Parameters
    ----------
    duplicates : "error", "last" or "mean"
        Where a user has several ratings of one item: refuse them; keep the latest (of equally late ones, or without
        times, that which comes last); or take the mean of the ratings, at the latest time.
    outliers : "error", "drop" or "clip"
        Where a rating is off the scale: refuse it, leave the interaction out, or move the rating to the scale's end.
    """

    duplicates: Duplicates = "error"
    outliers: Outliers = "error"


def build_dataset(
    name: str,
    interactions: Table,
    *,
    columns: Columns = Columns(),
    entities: Mapping[Side, Table] | None = None,
    scale: RatingScale | None = None,
    policies: Policies = Policies(),
    encoders: Mapping[Side, Mapping[str, EncoderSpec | None]] | None = None,
    display: Mapping[Side, str] | None = None,
) -> Dataset:
    """Check interactions and entity tables, and number the entities.

    The users (and the items) are those that the interactions name and those of their entity table, in ascending order
    of their ids. One without a line in the entity table has no attributes: nulls. Interactions keep their order.

    Parameters
    ----------
    name : str
        What the report calls the data set.
    interactions : Table
        Columns that `columns` does not name are left out.
    columns : Columns
    entities : mapping of side to Table, optional
        The ids' column, and attributes: numbers (NaN is missing), strings, booleans, or lists of such.
    scale : RatingScale, optional
        By default `infer_scale`, or that of implicit feedback where `columns` has no rating.
    policies : Policies
    encoders : mapping of side to mapping of attribute to EncoderSpec or None, optional
        See `Entities`; attributes that are not there are passed over.
    display : mapping of side to attribute, optional
        What people know the entities by.

    Raises
    ------
    DataError
        One line naming source, row or column, what was found and what was expected.
    """
    if interactions.frame.is_empty():
        raise DataError(f"{interactions.source}: has no interactions, expected at least one")
    rating = _ratings(interactions, columns.rating)
    if scale is not None:
        interactions, rating = _settle_outliers(interactions, rating, columns, scale, policies.outliers)
    time = _times(interactions, columns.time)
    entities, encoders, display = entities or {}, encoders or {}, display or {}
    users, user = _number("user", interactions, columns, entities, encoders, display)
    items, item = _number("item", interactions, columns, entities, encoders, display)
    dataset = Dataset(
        name,
        users=users,
        items=items,
        user=user,
        item=item,
        rating=rating,
        scale=scale or RatingScale.for_implicit(),
        time=time,
    )
    dataset = _settle_duplicates(dataset, interactions, columns, policies.duplicates)
    if scale is None and columns.rating is not None:
        dataset = replace(dataset, scale=infer_scale(dataset.rating, interactions.source))
    return dataset


def infer_scale(rating: Tensor, source: str) -> RatingScale:
    """The scale that ratings (float [n]) seem to be on.

    Its ends are the least and the greatest rating. It has a step where all ratings are whole multiples of the smallest
    distance from the least one, and at most 100 of those reach the greatest. Relevant are ratings in the upper quarter:
    from the first step at or above ``low + 3/4 (high − low)``, which is 4 on 1–5 and 8 on 1–10.

    Raises
    ------
    DataError
        All ratings are equal.
    """
    distinct = pl.Series(rating.numpy()).unique().sort().cast(pl.Float64).to_torch()
    low, high = distinct[0].item(), distinct[-1].item()
    if low == high:
        raise DataError(
            f"{source}: every rating is {low:g}, expected at least two different ones (or implicit feedback)"
        )
    step = _step(distinct)
    return RatingScale(low, high, upper_quarter(low, high, step), step)


def upper_quarter(low: float, high: float, step: float | None) -> float:
    """Where the upper quarter of a scale begins: the first step at or above ``low + 3/4 (high − low)``."""
    width = 0.75 * (high - low)
    return low + (width if step is None else step * math.ceil(width / step - 1e-6))


def _step(distinct: Tensor) -> float | None:
    if len(distinct) > FINEST_SCALE:
        return None
    step = distinct.diff().min().item()
    steps = (distinct - distinct[0]) / step
    even = (steps - steps.round()).abs().max() < 1e-3 and steps[-1] < FINEST_SCALE - 0.5
    return step if even else None


def _checked_ids(table: Table, column: str) -> pl.Series:
    ids = table.column(column)
    if ids.dtype in (pl.Categorical, pl.Enum):
        ids = ids.cast(pl.String)
    if not (ids.dtype.is_integer() or ids.dtype == pl.String):
        raise DataError(
            f"{table.source}, column {column!r}: found {ids.dtype}, expected ids (integers or strings)"
        )
    table.check(ids.is_null(), column, "an id")
    if ids.dtype.is_integer():
        whole = ids.cast(pl.Int64, strict=False)
        table.check(whole.is_null(), column, "an id of at most 64 bits, one of them for the sign")
        return whole
    return ids


def _ratings(table: Table, column: str | None) -> Tensor:
    if column is None:
        return torch.ones(table.frame.height)
    values = table.column(column)
    if not (values.dtype.is_numeric() or values.dtype == pl.Boolean):
        raise DataError(
            f"{table.source}, column {column!r}: found {values.dtype}, expected ratings (numbers)"
        )
    values = values.cast(pl.Float32)
    table.check(~values.is_finite().fill_null(False), column, "a finite number")
    return values.to_torch()


def _times(table: Table, column: str | None) -> Tensor | None:
    if column is None:
        return None
    values = table.column(column)
    if values.dtype == pl.Date or isinstance(values.dtype, pl.Datetime):
        values = values.dt.epoch("s")
    if not values.dtype.is_numeric():
        raise DataError(
            f"{table.source}, column {column!r}: found {values.dtype}, expected times (numbers or dates)"
        )
    table.check(~values.is_finite().fill_null(False), column, "a time")
    if values.dtype.is_float():
        values = values.floor()
    return values.cast(pl.Int64).to_torch()


def _number(
    side: Side,
    interactions: Table,
    columns: Columns,
    entities: Mapping[Side, Table],
    encoders: Mapping[Side, Mapping[str, EncoderSpec | None]],
    display: Mapping[Side, str],
) -> tuple[Entities, Tensor]:
    """The entities of a side, and the row of each interaction's one (int32 [n])."""
    key = columns.of(side)
    named = _checked_ids(interactions, key)
    if side not in entities:
        ids = named.unique().sort()
        return Entities(ids, pl.DataFrame(height=len(ids))), _rows(named, ids)
    table = entities[side]
    named, listed = _of_one_type(named, _listed_ids(table, key))
    distinct = named.unique()
    if len(listed) and not distinct.is_in(listed.implode()).any():
        raise DataError(
            f"{table.source}, column {key!r}: none of the ids occurs in {interactions.source}, "
            f"where the first is {named[0]!r}; found {listed[0]!r} first"
        )
    ids = pl.concat([distinct, listed]).unique().sort()
    attributes = [_attribute(table, name) for name in table.frame.columns if name != key]
    lines = pl.DataFrame([listed, *attributes])
    aligned = ids.to_frame().join(lines, on=key, how="left", maintain_order="left").drop(key)
    shown = display.get(side)
    if shown is not None and shown not in aligned.columns:
        raise DataError(f"{table.source}: {unknown_name('column', shown, aligned.columns)}")
    specs = {name: spec for name, spec in encoders.get(side, {}).items() if name in aligned.columns}
    return Entities(ids, aligned, specs, shown), _rows(named, ids)


def _listed_ids(table: Table, key: str) -> pl.Series:
    listed = _checked_ids(table, key)
    again = ~listed.is_first_distinct()
    if again.any():
        row = _first(again)
        before = table.place(_first(listed == listed[row]))
        raise DataError(
            f"{table.at(row, key)}: id {listed[row]!r} is repeated, it stands at {before} already"
        )
    return listed


def _of_one_type(named: pl.Series, listed: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Both as integers where one has integers and the other's strings all spell some, else both as strings."""
    if named.dtype == listed.dtype:
        return named, listed
    if named.dtype.is_integer() and spell_integers(listed):
        return named, listed.cast(pl.Int64)
    if listed.dtype.is_integer() and spell_integers(named):
        return named.cast(pl.Int64), listed
    return named.cast(pl.String), listed.cast(pl.String)


def spell_integers(strings: pl.Series) -> bool:
    """Whether all strings are integers without leading zeros, which are the same strings when written again."""
    written = strings.str.contains(INTEGER) | strings.is_null()
    return bool(written.all()) and strings.cast(pl.Int64, strict=False).null_count() == strings.null_count()


def _attribute(table: Table, name: str) -> pl.Series:
    values = table.frame[name]
    if not _is_attribute(values.dtype):
        raise DataError(
            f"{table.source}, column {name!r}: found {values.dtype}, "
            "expected numbers, strings, booleans or lists of them"
        )
    if values.dtype.is_float():
        table.check(values.is_infinite().fill_null(False), name, "a finite number")
        values = values.fill_nan(None)
    return values


def _is_attribute(dtype: pl.DataType) -> bool:
    if isinstance(dtype, (pl.List, pl.Array)):
        return _is_attribute(dtype.inner)  # type: ignore[arg-type]
    return dtype.is_numeric() or dtype in (
        pl.String,
        pl.Categorical,
        pl.Enum,
        pl.Boolean,
        pl.Null,
    )


def _rows(ids: pl.Series, known: pl.Series) -> Tensor:
    """The row of each id in `known`, which are in ascending order."""
    rows = np.arange(len(known), dtype=np.int32)
    span = known[-1] - known[0] + 1 if ids.dtype.is_integer() else 0
    if (
        0 < span <= 4 * len(ids)
    ):  # a table of all integers between takes a fraction of a join's time and memory
        table = np.empty(span, dtype=np.int32)
        table[(known - known[0]).to_numpy()] = rows
        return torch.from_numpy(table[(ids - known[0]).to_numpy()])
    return ids.replace_strict(known, pl.Series(rows), return_dtype=pl.Int32).to_torch()


def _settle_outliers(
    table: Table, rating: Tensor, columns: Columns, scale: RatingScale, policy: Outliers
) -> tuple[Table, Tensor]:
    outside = (rating < scale.low) | (rating > scale.high)
    if columns.rating is None or not outside.any():
        return table, rating
    if policy == "clip":
        return table, scale.clip(rating)
    if policy == "drop":
        kept = torch.nonzero(~outside).squeeze(1)
        return table.take(kept), rating[kept]
    table.check(
        outside,
        columns.rating,
        f"a rating from {scale.low:g} to {scale.high:g} (or outliers='drop' or 'clip')",
    )
    return table, rating


def _settle_duplicates(dataset: Dataset, table: Table, columns: Columns, policy: Duplicates) -> Dataset:
    ordered = _pairs(dataset)
    ordered.sort()  # in place, and much faster than hashing
    if not (ordered[1:] == ordered[:-1]).any():
        return dataset
    if policy == "error":
        raise DataError(_repeated(pl.Series(_pairs(dataset)), table, columns))
    ratings = pl.DataFrame({"pair": _pairs(dataset), "rating": dataset.rating.double().numpy()})
    ratings = ratings.with_row_index("row")
    if dataset.time is not None:
        ratings = ratings.select(
            pl.all().sort_by(pl.lit(pl.Series(dataset.time.numpy())), maintain_order=True)
        )
    kept = ratings.group_by("pair").agg(pl.col("row").last(), pl.col("rating").mean()).sort("row")
    dataset = dataset.take(kept["row"].cast(pl.Int64).to_torch())
    if policy == "mean":
        dataset = replace(dataset, rating=kept["rating"].cast(pl.Float32).to_torch())
    return dataset


def _pairs(dataset: Dataset) -> NDArray[np.int64]:
    """One number per interaction, the same where user and item are."""
    pairs: NDArray[np.int64] = dataset.user.long().mul_(len(dataset.items)).add_(dataset.item).numpy()
    return pairs


def _repeated(pair: pl.Series, table: Table, columns: Columns) -> str:
    row = _first(~pair.is_first_distinct())
    user, item = (table.frame[columns.of(side)][row] for side in SIDES)
    return (
        f"{table.source}, {table.place(row)}: user {user!r} and item {item!r} stand at "
        f"{table.place(_first(pair == pair[row]))} already, expected once (or duplicates='last' or 'mean')"
    )


def _first(mask: pl.Series) -> int:
    row = mask.fill_null(False).arg_max()
    assert row is not None
    return row


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    return f"{value:g}" if isinstance(value, float) else repr(value)

"""Data sets from pandas, polars, Arrow and SciPy; all must say the same."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
import torch

from metarec import from_frame, from_matrix
from metarec.data import Columns, Dataset, EncoderSpec, Policies, RatingScale
from metarec.errors import DataError

RATINGS = {
    "reader": ["b", "a", "b"],
    "book": [20, 10, 10],
    "stars": [4.0, 2.5, 5.0],
    "day": [datetime(2020, 1, 2), datetime(2020, 1, 1), datetime(2020, 1, 3)],
    "more": [None, "x", "y"],
}
BOOKS = {"book": [30, 10, 20], "price": [None, 3.0, 2.5], "tags": [["x"], [], None], "isbn": ["3", "1", "2"]}
COLUMNS = Columns("reader", "book", "stars", "day")
FRAMES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "polars": lambda columns: pl.DataFrame(columns, strict=False),
    "pandas": pd.DataFrame,
    "pandas with Arrow types": lambda columns: pd.DataFrame(columns).convert_dtypes(dtype_backend="pyarrow"),
    "Arrow": pa.table,
}


@pytest.mark.parametrize("kind", FRAMES)
def test_frames_of_every_kind_give_the_same(kind: str) -> None:
    make = FRAMES[kind]
    dataset = from_frame(
        make(RATINGS),
        COLUMNS,
        items=make(BOOKS),
        name="books",
        scale=RatingScale(1.0, 5.0, relevant_from=4.0),
        encoders={"item": {"isbn": None, "price": EncoderSpec("binned", {"bins": 2})}},
        display={"item": "isbn"},
    )
    assert dataset.name == "books" and dataset.scale == RatingScale(1.0, 5.0, relevant_from=4.0)
    assert dataset.users.ids.to_list() == ["a", "b"] and dataset.items.ids.to_list() == [10, 20, 30]
    assert dataset.user.tolist() == [1, 0, 1] and dataset.item.tolist() == [1, 0, 0]
    assert dataset.rating.tolist() == [4.0, 2.5, 5.0]
    assert dataset.time is not None and (dataset.time - dataset.time[1]).tolist() == [86400, 0, 2 * 86400]
    assert dataset.items.attributes.to_dicts() == [
        {"price": 3.0, "tags": [], "isbn": "1"},
        {"price": 2.5, "tags": None, "isbn": "2"},
        {"price": None, "tags": ["x"], "isbn": "3"},
    ]
    assert dataset.items.names.to_list() == ["1", "2", "3"]
    assert dataset.items.encoders == {"isbn": None, "price": EncoderSpec("binned", {"bins": 2})}
    assert (dataset.user.dtype, dataset.rating.dtype, dataset.time.dtype) == (
        torch.int32,
        torch.float32,
        torch.int64,
    )


def test_a_frame_without_ratings_is_implicit() -> None:
    dataset = from_frame(pl.DataFrame({"user": [1, 2], "item": [1, 1]}), Columns(rating=None))
    assert dataset.scale == RatingScale.for_implicit() and dataset.rating.tolist() == [1.0, 1.0]


def wrong(column: str, value: Any) -> dict[str, Any]:
    columns: dict[str, Any] = {"user": ["a", "b", "c"], "item": [1, 2, 3], "rating": [1.0, 2.0, 3.0]}
    return columns | {column: [*columns[column][:2], value]}


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ([(1, 2, 3)], "interactions: found list, expected a polars or pandas DataFrame, or an Arrow table"),
        (pl.Series([1]), "interactions: found polars.series.series.Series, expected"),
        (
            pl.DataFrame(wrong("rating", np.nan)),
            "interactions, row 3, column 'rating': found nan, expected a finite",
        ),
        (
            pd.DataFrame(wrong("rating", None)),
            "interactions, row 3, column 'rating': found nothing, expected a finite",
        ),
        (pd.DataFrame(wrong("rating", "x")), "interactions, column 'rating': "),
        (
            pl.DataFrame(wrong("item", None)),
            "interactions, row 3, column 'item': found nothing, expected an id",
        ),
        (
            pl.DataFrame(wrong("item", 2**63)),
            "row 3, column 'item': found 9223372036854775808, expected an id of at",
        ),
        (
            pl.DataFrame({"user": [1.5], "item": [1], "rating": [1]}),
            "column 'user': found Float64, expected ids",
        ),
        (
            pl.DataFrame({"user": [1], "itme": [1], "rating": [1]}),
            "unknown column 'item': did you mean 'itme'?",
        ),
        (pd.DataFrame([[1, 2]], columns=["user", "user"]), "column 'user' stands there twice, expected once"),
        (pl.DataFrame(schema={"user": pl.Int64}), "interactions: has no interactions, expected at least one"),
    ],
)
def test_wrong_frames_are_named(frame: Any, message: str) -> None:
    with pytest.raises(DataError) as error:
        from_frame(frame)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": [1, 1]}, "users, row 2, column 'user': id 1 is repeated, it stands at row 1 already"),
        ({"id": [1]}, "users: unknown column 'user'"),
        (
            {"user": [1], "x": [{"a": 1}]},
            "users, column 'x': found Struct({'a': Int64}), expected numbers, strings",
        ),
        ({"user": [1], "x": [float("inf")]}, "users, row 1, column 'x': found inf, expected a finite number"),
        (
            {"user": [8, 9]},
            "users, column 'user': none of the ids occurs in interactions, where the first is 1",
        ),
    ],
)
def test_wrong_entity_tables_are_named(columns: dict[str, Any], message: str) -> None:
    interactions = pl.DataFrame({"user": [1, 2], "item": [1, 1], "rating": [1, 2]})
    with pytest.raises(DataError) as error:
        from_frame(interactions, users=pl.DataFrame(columns))
    assert message in str(error.value)


FORMATS = ("coo", "csr", "csc", "lil", "dok")


def dense(dataset: Dataset) -> torch.Tensor:
    matrix = torch.full((len(dataset.users), len(dataset.items)), float("nan"))
    matrix[dataset.user.long(), dataset.item.long()] = dataset.rating
    return matrix


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", [scipy.sparse.coo_matrix, scipy.sparse.coo_array])
def test_a_matrix_stands_for_its_stored_entries(form: str, kind: Any) -> None:
    expected = torch.tensor([[4.0, torch.nan, 1.0], [torch.nan] * 3, [torch.nan, torch.nan, 5.0]])
    entries = (torch.tensor([4.0, 1.0, 5.0]).numpy(), ([0, 0, 2], [0, 2, 2]))
    dataset = from_matrix(kind(entries, shape=(3, 3)).asformat(form))
    torch.testing.assert_close(dense(dataset), expected, rtol=0, atol=0, equal_nan=True)
    assert dataset.users.ids.to_list() == [0, 1, 2] == dataset.items.ids.to_list()
    assert dataset.scale == RatingScale(1.0, 5.0, relevant_from=4.0, step=1.0)


def test_a_matrix_keeps_stored_zeros_and_sums_what_is_stored_twice() -> None:
    matrix = scipy.sparse.coo_array(([0, 2, 3, 7], ([0, 1, 1, 1], [1, 0, 0, 1])), shape=(2, 2))
    expected = torch.tensor([[torch.nan, 0.0], [5.0, 7.0]])
    torch.testing.assert_close(dense(from_matrix(matrix)), expected, rtol=0, atol=0, equal_nan=True)


def test_attributes_stand_in_the_order_of_the_matrix() -> None:
    matrix = scipy.sparse.csr_array([[0, 1], [1, 0], [0, 0]])
    users = pd.DataFrame({"age": [30, 40, 50]}, index=[9, 8, 7])
    dataset = from_matrix(matrix, users=users, implicit=True)
    assert dataset.users.attributes.to_dicts() == [{"age": 30}, {"age": 40}, {"age": 50}]
    assert dataset.scale.implicit and dataset.items.attributes.shape == (2, 0)


@pytest.mark.parametrize(
    ("matrix", "options", "message"),
    [
        (np.eye(2), {}, "matrix: found numpy.ndarray, expected a SciPy sparse matrix with two dimensions"),
        (scipy.sparse.csr_array((2, 2)), {}, "matrix: has no interactions, expected at least one"),
        (
            scipy.sparse.csr_array([[1.0, np.nan]]),
            {},
            "matrix, (0, 1), column 'rating': found nan, expected a finite number",
        ),
        (
            scipy.sparse.csr_array([[1, 9]]),
            {"scale": RatingScale(1, 5, 4)},
            "matrix, (0, 1), column 'rating': found 9, expected a rating from 1 to 5",
        ),
        (
            scipy.sparse.csr_array([[1, 2]]),
            {"items": pl.DataFrame({"x": [1]})},
            "items: found 1 rows, expected 2 as in the matrix",
        ),
        (
            scipy.sparse.csr_array([[1, 2]]),
            {"items": pl.DataFrame({"item": [1, 2]})},
            "items: found a column 'item', expected attributes only (rows say which item)",
        ),
    ],
)
def test_wrong_matrices_are_named(matrix: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        from_matrix(matrix, **options)
    assert message in str(error.value)


def test_policies_reach_frames_and_matrices() -> None:
    clip = Policies(outliers="clip")
    scale = RatingScale(1.0, 5.0, relevant_from=4.0)
    matrix = scipy.sparse.csr_array([[9.0, 2.0]])
    assert from_matrix(matrix, scale=scale, policies=clip).rating.tolist() == [5.0, 2.0]
    frame = pl.DataFrame({"user": [1, 1], "item": [1, 1], "rating": [9, 2]})
    mean = Policies(duplicates="mean", outliers="clip")
    assert from_frame(frame, scale=scale, policies=mean).rating.tolist() == [3.5]

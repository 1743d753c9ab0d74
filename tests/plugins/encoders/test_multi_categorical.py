"""One column per value; an entity's different values share a length of 1."""

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import MultiLabelBinarizer, normalize

from metarec.errors import DataError
from metarec.plugins.encoders.multi_categorical import MultiCategorical

lists = st.lists(st.none() | st.lists(st.none() | st.sampled_from("abcdä")), min_size=1)


def test_by_hand(stored):
    encoder = MultiCategorical().fit(pl.Series("genres", [["war", "comedy"], None, [], ["war", "war"]]))
    third, half = 3**-0.5, 2**-0.5
    expected = torch.tensor(
        [
            # comedy war unseen missing
            [0.0, 1, 0, 0],
            [half, half, 0, 0],
            [third, third, third, 0],  # two values are unseen: they count as one
            [0, 0, 1, 0],
            [0, 0, 0, 1],
            [0, 0, 0, 1],
            [0, 1, 0, 0],
        ]
    )
    asked = pl.Series(
        "genres",
        [
            ["war"],
            ["war", "comedy", "war"],
            ["new", "war", "comedy", "newer"],
            ["new"],
            [],
            None,
            [None, "war"],
        ],
    )
    assert torch.allclose(encoder.transform(asked).dense(), expected)
    assert dict(encoder.table()) == {"values": ["comedy", "war"]}
    assert torch.equal(stored(encoder).transform(asked).dense(), encoder.transform(asked).dense())


@given(lists)
def test_like_a_normalised_binarizer_on_what_it_was_fitted_on(train):
    column = pl.Series("a", train, dtype=pl.List(pl.String))
    encoder = MultiCategorical().fit(column)
    found = encoder.transform(column).dense().numpy()
    sets = [{value for value in values or [] if value is not None} for values in train]
    expected = normalize(MultiLabelBinarizer().fit_transform(sets)) if any(sets) else np.zeros((len(sets), 0))
    assert np.allclose(found[:, :-2], expected)
    assert np.array_equal(found[:, -2], np.zeros(len(sets)))
    assert np.array_equal(found[:, -1], [not values for values in sets])


def test_a_value_counts_once_per_entity():
    train = pl.Series("a", [["x", "x"], ["y"], ["y"], ["y", "x"]])
    assert dict(MultiCategorical(min_count=3).fit(train).table()) == {"values": ["y"]}
    assert dict(MultiCategorical(min_count=2).fit(train).table()) == {"values": ["x", "y"]}


@pytest.mark.parametrize(
    "column",
    [
        pl.Series("a", [[2, 1], [1], None]),
        pl.Series("a", [[2, 1], [1, 1], None], dtype=pl.Array(pl.Int64, 2)),
        pl.Series("a", [["2", "1"], ["1"], None], dtype=pl.List(pl.Categorical)),
    ],
    ids=["integers", "array", "categories"],
)
def test_lists_of_every_type(column):
    encoder = MultiCategorical().fit(column)
    assert dict(encoder.table()) == {"values": ["1", "2"]}
    half = 2**-0.5
    expected = torch.tensor([[half, half, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    assert torch.allclose(encoder.transform(column).dense(), expected)


def test_nothing_but_nulls():
    column = pl.Series("a", [None, None])
    encoder = MultiCategorical().fit(column)
    assert torch.equal(encoder.transform(column).dense(), torch.tensor([[0.0, 1.0], [0.0, 1.0]]))


def test_what_is_no_list_of_categories_is_named():
    with pytest.raises(DataError, match=r"^attribute 'a': found String, expected lists of strings$"):
        MultiCategorical().fit(pl.Series("a", ["x"]))
    with pytest.raises(
        DataError, match=r"^attribute 'a': found Float64, expected strings, integers or booleans$"
    ):
        MultiCategorical().fit(pl.Series("a", [[1.5]]))

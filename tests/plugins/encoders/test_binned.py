"""One column per bin; edges given or as many training entities in each as ties allow."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metarec.errors import ConfigError, DataError
from metarec.plugins.encoders.binned import Binned


def test_by_hand_with_edges(stored):
    encoder = Binned(edges=[18, 30]).fit(pl.Series("age", [40]))
    asked = pl.Series("age", [17.0, 18.0, 29.5, 30.0, 99.0, None])
    expected = torch.tensor(
        [[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    )
    assert torch.equal(encoder.transform(asked).dense(), expected)
    assert dict(encoder.table()) == {"edges": [18, 30]}
    assert torch.equal(stored(encoder).transform(asked).dense(), expected)


@given(
    st.lists(st.integers(-50, 50), min_size=1),
    st.lists(st.none() | st.integers(-60, 60), min_size=1),
    st.integers(1, 9),
)
def test_a_bin_is_that_of_pandas_for_the_edges_of_the_table(train, asked, bins):
    encoder = Binned(bins=bins).fit(pl.Series("a", train))
    edges = encoder.table()["edges"]
    codes = pd.cut(pd.Series(asked, dtype=float), [-np.inf, *edges, np.inf], right=False, labels=False)
    expected = codes.fillna(len(edges) + 1).astype(int).tolist()
    found = encoder.transform(pl.Series("a", asked, dtype=pl.Int64))
    assert found.columns.tolist() == expected
    assert found.values.tolist() == [1.0] * len(asked)
    assert found.width == len(edges) + 2 <= bins + 1


@given(st.sets(st.integers(-500, 500), min_size=1), st.integers(1, 9))
def test_bins_hold_alike_many_where_there_are_no_ties(train, bins):
    column = pl.Series("a", sorted(train))
    sizes = np.bincount(Binned(bins=bins).fit(column).transform(column).columns.numpy())
    assert len(sizes) == min(bins, len(train)) and sizes.max() - sizes.min() <= 1


@given(st.lists(st.integers(0, 5), min_size=1), st.integers(1, 9))
def test_no_bin_is_empty_on_the_training_entities(train, bins):
    column = pl.Series("a", train)
    encoder = Binned(bins=bins).fit(column)
    assert set(encoder.transform(column).columns.tolist()) == set(range(encoder.width - 1))


def test_missing_values_have_no_part_in_the_edges():
    with_nulls = Binned(bins=2).fit(pl.Series("a", [None, 1, 2, None, 3, 4, None, None]))
    assert with_nulls.table() == Binned(bins=2).fit(pl.Series("a", [1, 2, 3, 4])).table()
    nothing = Binned().fit(pl.Series("a", [None], dtype=pl.Int64))
    assert torch.equal(nothing.transform(pl.Series("a", [5, None])).dense(), torch.eye(2))


@pytest.mark.parametrize("edges", [[2.0, 1.0], [1.0, 1.0], [1.0, float("nan")], [float("-inf"), 1.0]])
def test_edges_must_rise(edges):
    with pytest.raises(
        ConfigError, match=r"^encoder 'binned': edges is \[.*\], expected finite numbers that rise$"
    ):
        Binned(edges=edges).fit(pl.Series("a", [1.0]))


def test_what_is_no_number_is_named():
    with pytest.raises(DataError, match=r"^attribute 'age': found 'old', expected a finite number$"):
        Binned().fit(pl.Series("age", ["old"]))

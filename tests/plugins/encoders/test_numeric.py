"""The standard score, as scikit-learn's scaler has it, and a flag."""

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from metarec.errors import DataError
from metarec.plugins.encoders.numeric import Numeric

numbers = st.lists(st.none() | st.integers(-1000, 1000).map(lambda tenths: tenths / 10), min_size=1)


def test_by_hand(stored):
    encoder = Numeric().fit(pl.Series("price", [1.0, 3.0, None, 1.0, 3.0]))  # mean 2, deviation 1
    asked = pl.Series("price", [3.0, None, 2.0, -1.5])
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [-3.5, 0.0]])
    assert torch.equal(encoder.transform(asked).dense(), expected)
    assert dict(encoder.table()) == {"mean": 2.0, "deviation": 1.0}
    assert torch.equal(stored(encoder).transform(asked).dense(), expected)


@given(numbers, numbers)
def test_like_the_standard_scaler(train, asked):
    encoder = Numeric().fit(pl.Series("a", train, dtype=pl.Float64))
    found = encoder.transform(pl.Series("a", asked, dtype=pl.Float64)).dense().numpy()
    seen = [number for number in train if number is not None] or [0.0]
    scaler = StandardScaler().fit(np.array(seen)[:, None])
    missing = np.array([number is None for number in asked])
    scores = scaler.transform(np.array([number or 0.0 for number in asked])[:, None])[:, 0]
    assert np.allclose(found[:, 0], np.where(missing, 0.0, scores), rtol=1e-5, atol=1e-5)
    assert np.array_equal(found[:, 1], missing)


def test_a_large_offset_keeps_its_digits():
    column = pl.Series("year", [1e9 + 1, 1e9 + 3])
    assert torch.equal(Numeric().fit(column).transform(column).dense()[:, 0], torch.tensor([-1.0, 1.0]))


@pytest.mark.parametrize("value", [0.1, 1e9, -7.0])
def test_a_constant_has_score_zero(value):
    column = pl.Series("a", [value] * 7)
    assert torch.allclose(Numeric().fit(column).transform(column).dense(), torch.zeros(7, 2), atol=1e-12)


@pytest.mark.parametrize(
    ("column", "found"),
    [
        (pl.Series("a", ["1", "two"]), "'two', expected a finite number"),
        (pl.Series("a", ["1", ""]), "'', expected a finite number"),
        (pl.Series("a", [1.0, float("nan")]), "nan, expected a finite number"),
        (pl.Series("a", [1.0, float("-inf")]), "-inf, expected a finite number"),
        (pl.Series("a", [True]), "Boolean, expected numbers"),
        (pl.Series("a", [[1.0]]), "List(Float64), expected numbers"),
    ],
    ids=["words", "empty", "nan", "infinite", "booleans", "lists"],
)
def test_what_is_no_number_is_named(column, found):
    fitted = Numeric().fit(pl.Series("a", [1.0, 2.0]))
    for use in (Numeric().fit, fitted.transform):
        with pytest.raises(DataError) as raised:
            use(column)
        assert str(raised.value) == f"attribute 'a': found {found}"


def test_strings_that_spell_numbers_and_integers_are_numbers():
    expected = Numeric().fit(pl.Series("a", [1.0, 2.5])).table()
    assert Numeric().fit(pl.Series("a", ["1", "2.5"])).table() == expected
    assert Numeric().fit(pl.Series("a", [1, 2])).table() == Numeric().fit(pl.Series("a", [1.0, 2.0])).table()

"""One column per value, one for unseen and one for missing values, as scikit-learn's one-hot encoder has it."""

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import OneHotEncoder

from metarec.errors import DataError
from metarec.plugins.encoders.categorical import Categorical

words = st.lists(st.none() | st.sampled_from(["a", "b", "B", "ä", "", "long word"]), min_size=1)


def test_by_hand(stored):
    encoder = Categorical().fit(pl.Series("job", ["nurse", None, "farmer", "nurse"]))
    expected = torch.tensor(
        [
            # farmer nurse unseen missing
            [0.0, 1, 0, 0],
            [0, 0, 1, 0],
            [0, 0, 0, 1],
            [1, 0, 0, 0],
        ]
    )
    asked = pl.Series("job", ["nurse", "artist", None, "farmer"])
    assert torch.equal(encoder.transform(asked).dense(), expected)
    assert encoder.width == 4
    assert dict(encoder.table()) == {"values": ["farmer", "nurse"]}
    assert torch.equal(stored(encoder).transform(asked).dense(), expected)


@given(words, words)
def test_like_one_hot_with_unknown_values_ignored(train, asked):
    encoder = Categorical().fit(pl.Series("a", train, dtype=pl.String))
    found = encoder.transform(pl.Series("a", asked, dtype=pl.String)).dense().numpy()
    peer = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    peer.fit(np.array([word for word in train if word is not None] or ["?"], dtype=object)[:, None])
    known = peer.transform(np.array([word or "" for word in asked], dtype=object)[:, None])
    missing = np.array([word is None for word in asked])
    known = known[:, : encoder.width - 2] * ~missing[:, None]
    assert np.array_equal(found[:, :-2], known)
    assert np.array_equal(found[:, -1], missing)
    assert np.array_equal(found.sum(1), np.ones(len(asked)))


def test_like_one_hot_with_rare_values_in_the_unseen_column():
    train = list("aaabbc")
    peer = OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=2, sparse_output=False)
    asked = list("abcdz")
    expected = peer.fit(np.array(train)[:, None]).transform(np.array(asked)[:, None])
    found = Categorical(min_count=2).fit(pl.Series("a", train)).transform(pl.Series("a", asked))
    assert np.array_equal(found.dense()[:, :3].numpy(), expected)
    assert found.width == 4


@pytest.mark.parametrize(
    ("values", "dtype", "names"),
    [
        ([3, 1, None], pl.Int64, ["1", "3"]),
        ([True, False, None], pl.Boolean, ["false", "true"]),
        (["x", "y", None], pl.Categorical, ["x", "y"]),
        (["x", "y", None], pl.Enum(["z", "y", "x"]), ["x", "y"]),
        ([None, None, None], pl.Null, []),
        ([None, None, None], pl.String, []),
    ],
)
def test_values_of_every_type_are_named_by_strings(values, dtype, names):
    encoder = Categorical().fit(pl.Series("a", values, dtype=dtype))
    assert dict(encoder.table()) == {"values": names}
    columns = encoder.transform(pl.Series("a", values, dtype=dtype)).columns
    expected = [len(names) + 1 if value is None else names.index(str(value).lower()) for value in values]
    assert columns.tolist() == expected


def test_numbers_are_no_categories():
    with pytest.raises(
        DataError, match=r"^attribute 'price': found Float64, expected strings, integers or boo"
    ):
        Categorical().fit(pl.Series("price", [1.5]))
    fitted = Categorical().fit(pl.Series("price", ["a"]))
    with pytest.raises(DataError, match=r"^attribute 'price': found List\(String\), expected strings"):
        fitted.transform(pl.Series("price", [["a"]]))

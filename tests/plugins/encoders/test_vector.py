"""Whitened principal components, as scikit-learn has them, and a flag."""

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.decomposition import PCA

from metarec.data import Dataset, Entities, RatingScale
from metarec.errors import DataError
from metarec.features import fit_encoders
from metarec.plugins.encoders.vector import Vector


def drawn(count: int, length: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return 3 + generator.normal(size=(count, length)) @ generator.normal(size=(length, length))


def test_by_hand(stored):
    # Mean (2, 1); along (1, 0) the variance is 4, along (0, 1) it is 1; two columns share a length of 1.
    encoder = Vector().fit(pl.Series("image", [[4.0, 2.0], [0.0, 2.0], None, [4.0, 0.0], [0.0, 0.0]]))
    asked = pl.Series("image", [[4.0, 0.0], None, [2.0, 1.0]])
    half = 2**-0.5
    expected = torch.tensor([[half, half, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert torch.allclose(encoder.transform(asked).dense().abs(), expected)
    assert torch.equal(stored(encoder).transform(asked).dense(), encoder.transform(asked).dense())


@pytest.mark.parametrize("components", [1, 3, 5, 9])
def test_like_whitened_principal_components(components):
    train, asked = drawn(40, 5), drawn(7, 5, seed=1)
    encoder = Vector(components=components).fit(pl.Series("a", train))
    peer = PCA(n_components=min(components, 5), whiten=True).fit(train)
    found = encoder.transform(pl.Series("a", asked)).dense().numpy()
    count = min(components, 5)
    # scikit-learn divides by one less than the number of rows, and either may turn a direction round.
    expected = peer.transform(asked) * np.sqrt(40 / 39 / count)
    assert found.shape == (7, count + 1) and not found[:, -1].any()
    turned = np.sign((found[:, :-1] * expected).sum(0))
    assert np.allclose(found[:, :-1], expected * turned, atol=1e-5)


def test_the_features_of_the_training_entities_have_length_one_on_average():
    train = pl.Series("a", 1000 * drawn(50, 6))
    found = Vector(components=4).fit(train).transform(train).dense()
    assert found.square().sum(1).mean() == pytest.approx(1, rel=1e-5)


def test_vectors_in_a_plane_have_two_columns_and_equal_ones_none():
    flat = drawn(30, 2) @ np.random.default_rng(2).normal(size=(2, 6))
    assert Vector().fit(pl.Series("a", flat)).width == 2 + 1
    assert Vector().fit(pl.Series("a", np.ones((5, 3)))).width == 1


@pytest.mark.parametrize("train", [[None, None], []], ids=["missing", "none"])
def test_without_a_vector_there_is_only_the_flag(train, stored):
    encoder = Vector().fit(pl.Series("a", train, dtype=pl.List(pl.Float64)))
    for one in (encoder, stored(encoder)):
        assert one.transform(pl.Series("a", [None])).dense().tolist() == [[1.0]]


def test_lists_and_arrays_of_any_numbers_are_the_same():
    train, integers = drawn(9, 2).round(), pl.List(pl.Int64)
    array, lists = pl.Series("a", train), pl.Series("a", train.tolist())
    found = [Vector().fit(one).table() for one in (array, lists, lists.cast(integers))]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("column", "found"),
    [
        (pl.Series("a", [[1.0, 2.0], [1.0]]), "found a list of 1 numbers, expected 2"),
        (pl.Series("a", [[1.0, None]]), "found None, expected finite numbers"),
        (pl.Series("a", [[1.0, float("nan")]]), "found nan, expected finite numbers"),
        (pl.Series("a", [["x", "y"]]), "found List(String), expected lists of numbers"),
        (pl.Series("a", [1.0]), "found Float64, expected lists of numbers"),
    ],
    ids=["length", "null", "nan", "words", "a number"],
)
def test_what_is_no_vector_is_named(column, found):
    fitted = Vector().fit(pl.Series("a", [[1.0, 2.0], [3.0, 5.0]]))
    for use in (Vector().fit, fitted.transform):
        with pytest.raises(DataError) as raised:
            use(column)
        assert str(raised.value) == f"attribute 'a': {found}"


def test_it_goes_by_the_type_of_the_attribute():
    attributes = pl.DataFrame(
        {"image": np.eye(3), "sound": [[0.5], [0.1], None], "genres": [[1, 2], [2], [3]]}
    )
    items = Entities(pl.Series("item", range(3)), attributes)
    users = Entities(pl.Series("user", [0]), pl.DataFrame(height=1))
    rows = torch.arange(3, dtype=torch.int32)
    train = Dataset("d", users, items, 0 * rows, rows, torch.ones(3), RatingScale.for_implicit())
    names = {name: encoder.name for name, encoder in fit_encoders(train).item.encoders.items()}
    assert names == {"image": "vector", "sound": "vector", "genres": "multi-categorical"}

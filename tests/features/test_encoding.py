"""Which encoder makes which features: by name or type, fitted on training entities only, written down and restored."""

import json

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metarec.data import Block, Dataset, EncoderSpec, Entities, RatingScale
from metarec.errors import ConfigError, DataError
from metarec.features import SideEncoders, codes_of, encode, fit_encoders, one_per_value
from metarec.pluginmanager import plugin_manager

ATTRIBUTES = {
    "job": pl.Series(["nurse", None, "farmer"]),
    "loyal": pl.Series([True, False, None]),
    "genres": pl.Series([["war"], [], ["war", "comedy"]]),
    "age": pl.Series([20.0, 40.0, None]),
    "title": pl.Series(["One", "Two", "Three"]),
}


def table(attributes=None, **options):
    frame = pl.DataFrame(ATTRIBUTES if attributes is None else attributes)
    return Entities(pl.Series("id", range(frame.height)), frame, **options)


def dataset(users, items=None):
    none = torch.zeros(0, dtype=torch.int32)
    scale = RatingScale(1.0, 5.0, relevant_from=4.0)
    items = items or Entities(pl.Series("item", [1, 2]), pl.DataFrame(height=2))
    return Dataset("made", users, items, none, none, none.float(), scale)


def encoded(users, **options):
    data = dataset(users, **options)
    return encode(data, fit_encoders(data))


def test_an_attribute_without_an_encoder_goes_by_its_type():
    encoders = fit_encoders(dataset(table(display="title"))).user
    names = {attribute: encoder.name for attribute, encoder in encoders.encoders.items()}
    assert names == {
        "job": "categorical",
        "loyal": "categorical",
        "genres": "multi-categorical",
        "age": "numeric",
    }
    by_type = fit_encoders(dataset(table({"n": [None], "i": [3]}))).user.encoders
    assert {name: encoder.name for name, encoder in by_type.items()} == {"n": "categorical", "i": "numeric"}


def test_attributes_fill_blocks_of_columns_in_order():
    features = encoded(table(display="title")).users.features
    half = 2**-0.5
    expected = [
        # job: farmer nurse unseen missing | loyal: false true unseen missing | genres: comedy war u m | age: score m
        [0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, -1, 0],
        [0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0],
        [1, 0, 0, 0, 0, 0, 0, 1, half, half, 0, 0, 0, 1],
    ]
    assert torch.allclose(features.dense(), torch.tensor(expected).float())
    blocks = (Block("job", 0, 4), Block("loyal", 4, 8), Block("genres", 8, 12), Block("age", 12, 14))
    assert features.blocks == blocks


def test_a_named_encoder_with_its_options_is_used_and_none_is_for_display_only():
    specs = {
        "age": EncoderSpec("binned", {"edges": [30.0]}),
        "title": EncoderSpec("hashed-text"),
        "job": None,
    }
    encoders = fit_encoders(dataset(table(encoders=specs, display="title"))).user.encoders
    assert list(encoders) == ["loyal", "genres", "age", "title"]
    assert dict(encoders["age"].table()) == {"edges": [30.0]}
    assert encoders["title"].name == "hashed-text"


def test_entities_without_attributes_have_no_columns():
    features = encoded(table()).items.features
    assert (len(features), features.width) == (2, 0)
    encoder = fit_encoders(dataset(table())).item
    assert encoder.width == 0 and len(encoder.transform(pl.DataFrame(height=3))) == 3


def test_only_training_entities_are_learnt_from():
    whole = dataset(table(display="title"))
    train = whole.restrict(torch.tensor([0, 1]), torch.tensor([0]))
    encoders = fit_encoders(train)
    assert encoders.user.encoders["job"].table() == {"values": ["nurse"]}
    assert encoders.user.encoders["age"].table() == {"mean": 30.0, "deviation": 10.0}
    features = encode(whole, encoders).users.features
    assert features.width == encoders.user.width == 3 + 4 + 3 + 2
    half = 2**-0.5
    third = [0, 1, 0, 0, 0, 0, 1, half, half, 0, 0, 1]  # farmer and comedy are unseen, loyal and age missing
    assert torch.allclose(features.dense()[2], torch.tensor(third))


def test_an_attribute_that_is_not_given_is_missing():
    encoder = fit_encoders(dataset(table(display="title"))).user
    nobody = encoder.transform(pl.DataFrame({"age": [30.0]}))
    nulls = {
        name: pl.Series([None], dtype=column.dtype) for name, column in ATTRIBUTES.items() if name != "title"
    }
    expected = encoder.transform(pl.DataFrame({**nulls, "age": [30.0]}))
    assert torch.equal(nobody.dense(), expected.dense())
    assert nobody.dense()[0, [3, 7, 11]].tolist() == [1, 1, 1]


def test_tables_as_json_restore_the_same_features():
    users = table(
        encoders={
            "age": EncoderSpec("binned", {"bins": 2}),
            "title": EncoderSpec("hashed-text", {"buckets": 7}),
        }
    )
    data = dataset(users)
    encoders = fit_encoders(data)
    restored = SideEncoders.from_table(json.loads(json.dumps(encoders.table())))
    before, after = encode(data, encoders).users.features, encode(data, restored).users.features
    assert torch.equal(before.dense(), after.dense()) and before.blocks == after.blocks
    assert restored.table() == encoders.table()
    assert restored.side("item").width == 0


@pytest.mark.parametrize(
    ("attributes", "specs", "error", "expected"),
    [
        (
            {"job": ["a"]},
            {"jbo": EncoderSpec("numeric")},
            DataError,
            "unknown user attribute 'jbo': did you mean 'job'?",
        ),
        (
            {"job": ["a"]},
            {"job": EncoderSpec("numerc")},
            ConfigError,
            "unknown encoder 'numerc': did you mean 'numeric'?",
        ),
        (
            {"job": ["a"]},
            {"job": EncoderSpec("categorical", {"min_cuont": 2})},
            ConfigError,
            "encoder 'categorical': unknown option 'min_cuont': did you mean 'min_count'?",
        ),
        (
            {"job": ["a"]},
            {"job": EncoderSpec("binned", {"bins": 0})},
            ConfigError,
            "encoder 'binned': bins is 0, expected greater than or equal to 1",
        ),
        (
            {"job": ["a"]},
            {"job": EncoderSpec("numeric")},
            DataError,
            "attribute 'job': found 'a', expected a finite number",
        ),
        (
            {"job": [{"x": 1}]},
            {},
            DataError,
            "user attribute 'job' has type Struct({'x': Int64}): no encoder goes by that type, name one for it",
        ),
    ],
    ids=["attribute", "encoder", "option", "range", "value", "type"],
)
def test_what_does_not_fit_is_said_in_one_line(attributes, specs, error, expected):
    with pytest.raises(error) as raised:
        fit_encoders(dataset(table(attributes, encoders=specs)))
    assert str(raised.value) == expected


def test_an_unknown_attribute_of_a_newcomer_is_named():
    encoder = fit_encoders(dataset(table(display="title"))).user
    with pytest.raises(DataError, match=r"^unknown attribute 'jbo': did you mean 'job'\?$"):
        encoder.transform(pl.DataFrame({"jbo": ["nurse"]}))
    with pytest.raises(DataError, match=r"^attribute 'age': found 'old', expected a finite number$"):
        encoder.transform(pl.DataFrame({"age": ["old"]}))


@given(st.lists(st.none() | st.sampled_from("abcd")), st.lists(st.sampled_from("abc"), unique=True))
def test_codes_are_places(strings, known):
    codes = codes_of(pl.Series(strings, dtype=pl.String), known).tolist()
    place = {
        **{string: len(known) for string in "abcd"},
        **{s: i for i, s in enumerate(known)},
        None: len(known) + 1,
    }
    assert codes == [place[string] for string in strings]


@given(st.lists(st.none() | st.lists(st.sampled_from("ab"))))
def test_one_line_per_value(lists):
    frame = one_per_value(pl.Series(lists, dtype=pl.List(pl.String)))
    assert frame.rows() == [(row, value) for row, values in enumerate(lists) for value in values or [None]]


WORDS = pl.Series("a", ["1", "2"])
OTHERS = {
    "multi-categorical": pl.Series("a", [["1"], ["2", "1"]]),
    "vector": pl.Series("a", [[1, 2], [2, 1]]),
}


@pytest.mark.parametrize("name", list(plugin_manager().encoders))
def test_every_encoder_keeps_missing_apart_and_rows_in_order(name):
    column = OTHERS.get(name, WORDS)
    encoder = plugin_manager().encoders.create(name).fit(column)
    dense = encoder.transform(column).dense()
    missing = encoder.transform(pl.Series("a", [None], dtype=column.dtype)).dense()[0]
    assert not any(torch.equal(missing, row) for row in dense)
    assert torch.equal(encoder.transform(column.reverse()).dense(), dense.flip(0))
    assert torch.equal(encoder.transform(column[:0]).dense(), dense[:0])
    assert torch.equal(encoder.transform(pl.Series("a", [None, None])).dense(), torch.stack([missing] * 2))

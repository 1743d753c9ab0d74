"""`Dataset.save` and `Dataset.load`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal, assert_series_equal
from polars.testing.parametric import dataframes

from metarec import load_dataset
from metarec.data import Dataset, EncoderSpec, Entities, RatingScale
from metarec.errors import DataError


def assert_same(found: Dataset, expected: Dataset) -> None:
    assert (found.name, found.scale) == (expected.name, expected.scale)
    for name in ("user", "item", "rating", "time"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.dtype == theirs.dtype and ours.equal(theirs)
    for side in ("user", "item"):
        ours, theirs = found.entities(side), expected.entities(side)
        assert_series_equal(ours.ids, theirs.ids)
        assert_frame_equal(ours.attributes, theirs.attributes)
        assert ours.attributes.height == theirs.attributes.height
        assert (ours.encoders, ours.display) == (theirs.encoders, theirs.display)


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("timed", [False, True])
def test_what_was_saved_is_loaded(
    tmp_path: Path, make_dataset: Callable[..., Dataset], implicit: bool, timed: bool
) -> None:
    dataset = make_dataset(implicit=implicit)
    if not timed:
        dataset = replace(dataset, time=None)
    dataset.save(tmp_path / "new" / "data")
    assert_same(Dataset.load(tmp_path / "new" / "data"), dataset)


def test_the_embedded_data_set_survives(tmp_path: Path) -> None:
    dataset = load_dataset("complete-journey")
    dataset.save(tmp_path / "data")
    assert_same(Dataset.load(tmp_path / "data"), dataset)


ATTRIBUTES = dataframes(
    min_size=3,
    max_size=3,
    max_cols=5,
    allowed_dtypes=[
        pl.Int8,
        pl.UInt64,
        pl.Float32,
        pl.String,
        pl.Boolean,
        pl.Enum(["x", "y"]),
        pl.List(pl.String),
    ],
)


@settings(
    deadline=timedelta(seconds=5),
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(attributes=ATTRIBUTES, ids=st.lists(st.text(max_size=5), min_size=3, max_size=3, unique=True))
def test_entities_of_any_kind_survive(tmp_path: Path, attributes: pl.DataFrame, ids: list[str]) -> None:
    encoders = {name: EncoderSpec("x", {"edges": [1, 2], "s": "é"}) for name in attributes.columns[:1]}
    users = Entities(pl.Series("id", ids, dtype=pl.String), attributes, encoders, next(iter(encoders), None))
    items = Entities(pl.Series("attribute:id", [5]), pl.DataFrame(height=1))
    row = torch.zeros(2, dtype=torch.int32)
    dataset = Dataset("d", users, items, row, row, torch.tensor([0.1, 0.7]), RatingScale(0.1, 0.7, 0.3))
    dataset.save(tmp_path / "data")
    assert_same(Dataset.load(tmp_path / "data"), dataset)


def test_a_data_set_replaces_a_data_set_and_nothing_else(
    tmp_path: Path, make_dataset: Callable[..., Dataset]
) -> None:
    first, second = make_dataset(seed=1), make_dataset(seed=2)
    first.save(tmp_path / "data")
    second.save(tmp_path / "data")
    assert_same(Dataset.load(tmp_path / "data"), second)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("Dear")
    with pytest.raises(DataError, match="holds something that is no data set: it is left alone"):
        first.save(tmp_path / "letters")
    assert (tmp_path / "letters" / "a.txt").read_text() == "Dear"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "letters"]


def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path, make_dataset: Callable[..., Dataset]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        make_dataset().save(tmp_path / "file" / "data")


def edited(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def damage(folder: Path, case: str) -> str:
    """Do it, and give what should be said."""
    parquet, manifest = folder / "items.parquet", folder / "manifest.json"
    content = parquet.read_bytes()
    match case:
        case "gone":
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
            return "no such folder"
        case "no manifest":
            manifest.unlink()
            return "is no data set of metarec: it has no manifest.json"
        case "truncated manifest":
            manifest.write_bytes(manifest.read_bytes()[:-9])
            return "manifest.json: is damaged"
        case "manifest edited":
            edited(folder, lambda values: values["scale"].update(high=9.0))
            return "manifest.json: is damaged: its contents do not fit its checksum"
        case "foreign":
            edited(folder, lambda values: values.update(format="metarec-artifact"))
            return "is no data set of metarec: its manifest.json is of something else"
        case "newer":
            edited(folder, lambda values: values.update(format_version=99))
            return "has format version 99, expected at most 1: upgrade metarec"
        case "file missing":
            parquet.unlink()
            return "items.parquet: cannot be read: No such file"
        case "file truncated":
            parquet.write_bytes(content[:-1])
            return f"items.parquet: is damaged: it has {len(content) - 1} bytes, expected {len(content)}"
        case "bit flipped":
            parquet.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
            return "items.parquet: is damaged: its contents do not fit its checksum"
    raise AssertionError(case)


@pytest.mark.parametrize(
    "case",
    [
        "gone",
        "no manifest",
        "truncated manifest",
        "manifest edited",
        "foreign",
        "newer",
        "file missing",
        "file truncated",
        "bit flipped",
    ],
)
def test_what_is_damaged_is_named(tmp_path: Path, make_dataset: Callable[..., Dataset], case: str) -> None:
    folder = tmp_path / "data"
    make_dataset().save(folder)
    message = damage(folder, case)
    with pytest.raises(DataError) as error:
        Dataset.load(folder)
    assert str(error.value).startswith(str(folder)) and message in str(error.value)

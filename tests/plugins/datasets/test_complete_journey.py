"""The embedded data set: what it holds, and that the script makes it of its source."""

from __future__ import annotations

import csv
import gzip
import math
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import polars as pl
import pytest
import torch

from metarec import load_dataset
from metarec.data import Dataset, RatingScale

FILES = ("baskets.parquet", "households.parquet", "products.parquet")
PACKAGE = resources.files("metarec.plugins") / "datasets" / "complete_journey"
SCRIPT = Path(__file__).parents[3] / "scripts" / "make_complete_journey.py"


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset("complete-journey")


@pytest.fixture(scope="module")
def source() -> Path:
    folder = Path(os.environ.get("METAREC_TEST_DATA", "")) / "complete-journey"
    if "METAREC_TEST_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("METAREC_TEST_DATA names no folder with the source of complete-journey")
    return folder


def records(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def test_counts_and_attributes(dataset: Dataset) -> None:
    assert (len(dataset.users), len(dataset.items), len(dataset)) == (798, 5743, 268_314)
    assert dataset.users.attributes.columns == [
        "age",
        "income",
        "home_ownership",
        "marital_status",
        "household_size",
        "composition",
        "kids",
    ]
    assert dataset.items.attributes.columns == [
        "title",
        "department",
        "brand",
        "category",
        "type",
        "size",
        "price",
    ]
    assert dataset.users.attributes["age"].null_count() == 0
    assert dataset.items.attributes["department"].null_count() == 2
    assert dataset.scale == RatingScale(1.0, 5.0, relevant_from=2.0)


def test_the_files_are_small_and_say_where_they_are_from() -> None:
    assert sum(len((PACKAGE / name).read_bytes()) for name in FILES) <= 3_000_000
    text = (PACKAGE / "SOURCE.md").read_text(encoding="utf-8")
    assert "CC0" in text and "84.51" in text and "completejourney" in text


def test_preference_is_one_and_the_logarithm_of_baskets_up_to_five(dataset: Dataset) -> None:
    with (PACKAGE / "baskets.parquet").open("rb") as file:
        baskets = pl.read_parquet(file)["baskets"].to_list()
    expected = torch.tensor([1 + min(4.0, math.log2(count)) for count in baskets])
    torch.testing.assert_close(dataset.rating, expected, rtol=1e-6, atol=0)
    assert {1, 2, 16} <= set(baskets) and dataset.rating.max() == 5.0


def test_the_implicit_view_has_the_same_pairs_and_no_ratings(dataset: Dataset) -> None:
    implicit = load_dataset("complete-journey", feedback="implicit")
    assert implicit.scale == RatingScale.for_implicit() and implicit.rating.eq(1).all()
    assert implicit.user.equal(dataset.user) and implicit.item.equal(dataset.item)


def test_the_script_makes_the_very_same_files(source: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, SCRIPT, source, tmp_path], check=True, capture_output=True)
    for name in FILES:
        made, shipped = (tmp_path / name).read_bytes(), (PACKAGE / name).read_bytes()
        assert pl.read_parquet(made).equals(pl.read_parquet(shipped)), name
        assert made == shipped, f"{name} has the same contents, written otherwise"


def test_baskets_days_and_prices_are_those_of_the_source(source: Path, dataset: Dataset) -> None:
    pairs: dict[tuple[int, int], tuple[int, str]] = {}
    prices: dict[int, list[float]] = defaultdict(list)
    for line in records(source / "household_product.csv.gz"):
        pair = int(line["household_id"]), int(line["product_id"])
        pairs[pair] = int(line["n_baskets"]), line["first_day"]
        if float(line["quantity"]) > 0 and float(line["sales_value"]) > 0:
            prices[pair[1]].append(float(line["sales_value"]) / float(line["quantity"]))
    assert len(pairs) == len(dataset)
    users, items = dataset.users.ids.to_list(), dataset.items.ids.to_list()
    assert dataset.time is not None
    for row in range(0, len(dataset), 997):
        baskets, day = pairs[users[int(dataset.user[row])], items[int(dataset.item[row])]]
        assert dataset.rating[row].item() == pytest.approx(1 + min(4.0, math.log2(baskets)))
        assert str(pl.Series([int(dataset.time[row])]).cast(pl.Date)[0]) == day
    listed = dict(zip(items, dataset.items.attributes["price"].to_list(), strict=True))
    known = {item: price for item, price in listed.items() if price is not None}
    assert len(known) > 5700
    for item, price in known.items():
        assert price == pytest.approx(statistics.median(prices[item]), abs=0.00501), item

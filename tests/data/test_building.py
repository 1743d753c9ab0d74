"""`build_dataset` against loops over dictionaries, and the scales that ratings seem to be on."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metarec.data import Columns, Dataset, Policies, RatingScale, Table, build_dataset, infer_scale
from metarec.errors import ConfigError, DataError

FAR = 2**62
IDS = st.one_of(
    st.lists(st.integers(-3, 3), min_size=1, max_size=12),
    st.lists(st.sampled_from([-FAR, -1, 0, 5, FAR]), min_size=1, max_size=12),
    st.lists(st.sampled_from(["a", "B", "é", "10", "9", ""]), min_size=1, max_size=12),
)
SCALE = RatingScale(1.0, 5.0, relevant_from=4.0)


def build(columns: dict[str, Any], *, scale: RatingScale | None = SCALE, **policies: Any) -> Dataset:
    time = "time" if "time" in columns else None
    return build_dataset(
        "d",
        Table(pl.DataFrame(columns), "made"),
        columns=Columns(time=time),
        scale=scale,
        policies=Policies(**policies),
    )


@given(user=IDS, item=IDS)
def test_rows_lead_back_to_ids_in_ascending_order(user: list[Any], item: list[Any]) -> None:
    count = min(len(user), len(item))
    user, item = user[:count], item[:count]
    pairs = list(dict.fromkeys(zip(user, item, strict=True)))
    user, item = map(list, zip(*pairs, strict=True))
    dataset = build({"user": user, "item": item, "rating": [3.0] * len(pairs)})
    assert dataset.users.ids.to_list() == sorted(set(user)) and dataset.items.ids.to_list() == sorted(
        set(item)
    )
    assert dataset.users.ids.gather(dataset.user.tolist()).to_list() == user
    assert dataset.items.ids.gather(dataset.item.tolist()).to_list() == item
    assert dataset.user.dtype == dataset.item.dtype == torch.int32


INTERACTIONS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(1, 5), st.integers(0, 3)),
    min_size=1,
    max_size=20,
)


@settings(max_examples=200)
@given(lines=INTERACTIONS, timed=st.booleans(), policy=st.sampled_from(["last", "mean"]))
def test_duplicates_as_a_loop_would_settle_them(
    lines: list[tuple[int, int, int, int]], timed: bool, policy: str
) -> None:
    kept: dict[tuple[int, int], int] = {}
    ratings: dict[tuple[int, int], list[int]] = {}
    for row, (user, item, rating, time) in enumerate(lines):
        pair = user, item
        ratings.setdefault(pair, []).append(rating)
        if pair not in kept or not timed or time >= lines[kept[pair]][3]:
            kept[pair] = row
    expected = [
        (*pair, lines[row][2] if policy == "last" else sum(ratings[pair]) / len(ratings[pair]), lines[row][3])
        for pair, row in sorted(kept.items(), key=lambda entry: entry[1])
    ]
    columns = dict(zip(("user", "item", "rating", "time"), map(list, zip(*lines, strict=True)), strict=True))
    if not timed:
        del columns["time"]
    dataset = build(columns, duplicates=policy)
    users, items = dataset.users.ids.to_list(), dataset.items.ids.to_list()
    found = [
        (users[user], items[item], pytest.approx(rating))
        for user, item, rating in zip(
            dataset.user.tolist(), dataset.item.tolist(), dataset.rating.tolist(), strict=True
        )
    ]
    assert found == [line[:3] for line in expected]
    if timed:
        assert dataset.time is not None and dataset.time.tolist() == [line[3] for line in expected]


def test_duplicates_are_settled_after_outliers() -> None:
    columns = {"user": [1, 1, 1], "item": [1, 1, 1], "rating": [9.0, 2.0, 4.0]}
    assert build(columns, outliers="drop", duplicates="mean").rating.tolist() == [3.0]
    assert build(columns, outliers="clip", duplicates="mean").rating.tolist() == [pytest.approx(11 / 3)]


def test_rows_are_counted_in_the_source_where_outliers_were_dropped() -> None:
    columns = {"user": [1, 1, None], "item": [1, 2, 3], "rating": [9.0, 2.0, 4.0]}
    with pytest.raises(DataError, match="made, row 3, column 'user': found nothing, expected an id"):
        build(columns, outliers="drop")


@pytest.mark.parametrize(
    ("ratings", "scale"),
    [
        ([1, 2, 3, 4, 5], RatingScale(1, 5, relevant_from=4, step=1)),
        ([1, 3, 5, 5], RatingScale(1, 5, relevant_from=5, step=2)),
        ([0.5, 1.0, 4.5, 5.0], RatingScale(0.5, 5, relevant_from=4, step=0.5)),
        (list(range(1, 11)), RatingScale(1, 10, relevant_from=8, step=1)),
        ([0, 1], RatingScale(0, 1, relevant_from=1, step=1)),
        ([0.1, 0.2, 0.3], RatingScale(0.1, 0.3, relevant_from=0.3, step=0.1)),
        ([0, 0.3, 1], RatingScale(0, 1, relevant_from=0.75)),
        ([-10.0, 9.9, -9.7], RatingScale(-10, 9.9, relevant_from=4.925)),
        (list(range(101)), RatingScale(0, 100, relevant_from=75, step=1)),
        ([0, 1, 100], RatingScale(0, 100, relevant_from=75, step=1)),
        ([0, 1, 101], RatingScale(0, 101, relevant_from=75.75)),
        (list(range(102)), RatingScale(0, 101, relevant_from=75.75)),
    ],
)
def test_the_scale_that_ratings_seem_to_be_on(ratings: list[float], scale: RatingScale) -> None:
    found = infer_scale(torch.tensor(ratings, dtype=torch.float32), "made")
    numbers = (found.low, found.high, found.relevant_from)
    assert numbers == pytest.approx((scale.low, scale.high, scale.relevant_from), rel=1e-6)
    assert found.step == (None if scale.step is None else pytest.approx(scale.step, rel=1e-5))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"low": 5, "high": 5}, "low is 5, expected less than high, 5"),
        ({"low": float("nan")}, "low is nan, expected a finite number"),
        ({"relevant_from": 0}, "relevant_from is 0, expected 1 to 5"),
        ({"relevant_from": float("nan")}, "relevant_from is nan, expected 1 to 5"),
        ({"step": -1}, "step is -1, expected more than 0 and at most 4"),
        ({"high": float("inf")}, "high is inf, expected a finite number"),
    ],
)
def test_a_scale_that_is_none_is_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match="rating scale: ") as error:
        RatingScale(**({"low": 1, "high": 5, "relevant_from": 4} | values))
    assert message in str(error.value)


def test_an_entity_without_a_line_has_no_attributes() -> None:
    interactions = Table(pl.DataFrame({"user": [2, 1], "item": [1, 1], "rating": [1, 5]}), "made")
    users = Table(pl.DataFrame({"user": [3, 2], "age": [30, 20], "x": [float("nan"), 1.0]}), "people")
    dataset = build_dataset("d", interactions, entities={"user": users}, scale=SCALE)
    assert dataset.users.ids.to_list() == [1, 2, 3]
    assert dataset.users.attributes.to_dicts() == [
        {"age": None, "x": None},
        {"age": 20, "x": 1.0},
        {"age": 30, "x": None},
    ]
    assert dataset.user.tolist() == [1, 0]


def test_display_must_be_an_attribute() -> None:
    interactions = Table(pl.DataFrame({"user": [1], "item": [1], "rating": [1]}), "made")
    items = Table(pl.DataFrame({"item": [1], "title": ["x"]}), "things")
    with pytest.raises(DataError, match="things: unknown column 'titel': did you mean 'title'"):
        build_dataset("d", interactions, entities={"item": items}, scale=SCALE, display={"item": "titel"})


def test_restrict_and_take_keep_what_lies_between() -> None:
    columns = {"user": [1, 2, 3, 3], "item": [7, 8, 7, 9], "rating": [1, 2, 3, 4], "time": [4, 3, 2, 1]}
    dataset = build(columns)
    part = dataset.restrict(torch.tensor([2, 0]), torch.tensor([2, 0]))
    assert part.users.ids.to_list() == [3, 1] and part.items.ids.to_list() == [9, 7]
    assert part.user.tolist() == [1, 0, 0] and part.item.tolist() == [1, 1, 0]
    assert part.rating.tolist() == [1.0, 3.0, 4.0]
    assert part.time is not None and part.time.tolist() == [4, 2, 1]
    assert dataset.take(torch.tensor([3, 0])).rating.tolist() == [4.0, 1.0]

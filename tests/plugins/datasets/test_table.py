"""The reader of ratings files: what it reads, and what it says of files that it cannot read."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metarec import load_dataset, split
from metarec.data import Dataset, Entities, RatingScale
from metarec.errors import ConfigError, DataError

RATINGS = "user,item,rating,time\nb,10,4,1000\na,7,2.5,3000\nb,7,5,2000\n"
USERS = "user,age,zip,note\nb,31,01060,\na,,94043,x\nz,5,48067,y\n"
ITEMS = "item,title,genres,price\n7,Heat,Crime|Drama,9.5\n10,Amélie,,3\n12,Alien,Horror,\n"


def triples(dataset: Dataset) -> list[tuple[Any, Any, float]]:
    users, items = dataset.users.ids.to_list(), dataset.items.ids.to_list()
    rows = zip(dataset.user.tolist(), dataset.item.tolist(), dataset.rating.tolist(), strict=True)
    return [(users[user], items[item], rating) for user, item, rating in rows]


def attributes(entities: Entities) -> dict[Any, dict[str, Any]]:
    return dict(zip(entities.ids.to_list(), entities.attributes.to_dicts(), strict=True))


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    path = tmp_path / "ratings.csv"
    path.write_text(RATINGS)
    return path


def test_ratings_keep_their_order_and_ids_their_type(ratings: Path) -> None:
    dataset = load_dataset("table", path=ratings, time="time")
    assert triples(dataset) == [("b", 10, 4.0), ("a", 7, 2.5), ("b", 7, 5.0)]
    assert dataset.users.ids.to_list() == ["a", "b"] and dataset.items.ids.to_list() == [7, 10]
    assert dataset.time is not None and dataset.time.tolist() == [1000, 3000, 2000]
    assert dataset.name == "ratings"


def test_the_scale_is_that_of_the_ratings_or_of_the_options(ratings: Path) -> None:
    def scale(**options: float) -> RatingScale:
        return load_dataset("table", path=ratings, **options).scale

    assert scale() == RatingScale(2.5, 5.0, relevant_from=4.375, step=None)
    assert scale(relevant_from=4) == RatingScale(2.5, 5.0, relevant_from=4.0, step=None)
    assert scale(low=1, high=5, step=0.5) == RatingScale(1.0, 5.0, relevant_from=4.0, step=0.5)
    assert scale(low=0, high=10, relevant_from=6) == RatingScale(0.0, 10.0, relevant_from=6.0)
    assert load_dataset("table", path=ratings, feedback="implicit").scale == RatingScale.for_implicit()


def test_entity_tables_give_attributes_and_entities_that_nobody_rated(tmp_path: Path, ratings: Path) -> None:
    users, items = tmp_path / "users.csv", tmp_path / "items.csv"
    users.write_text(USERS)
    items.write_text(ITEMS, encoding="utf-8")
    dataset = load_dataset(
        "table", path=ratings, users=users, items=items, lists={"genres": "|"}, title="title"
    )
    assert attributes(dataset.users) == {
        "a": {"age": None, "zip": "94043", "note": "x"},
        "b": {"age": 31, "zip": "01060", "note": None},
        "z": {"age": 5, "zip": "48067", "note": "y"},
    }
    assert attributes(dataset.items) == {
        7: {"title": "Heat", "genres": ["Crime", "Drama"], "price": 9.5},
        10: {"title": "Amélie", "genres": None, "price": 3.0},
        12: {"title": "Alien", "genres": ["Horror"], "price": None},
    }
    assert dataset.items.names.to_list() == ["Heat", "Amélie", "Alien"]
    assert triples(dataset) == [("b", 10, 4.0), ("a", 7, 2.5), ("b", 7, 5.0)]


def test_ids_are_strings_where_an_entity_table_has_one_that_is_no_integer(
    tmp_path: Path, ratings: Path
) -> None:
    items = tmp_path / "items.csv"
    items.write_text("item,kind\n7,x\nA77,y\n")
    dataset = load_dataset("table", path=ratings, items=items)
    assert dataset.items.ids.to_list() == ["10", "7", "A77"]
    assert triples(dataset)[0] == ("b", "10", 4.0)
    assert attributes(dataset.items)["10"] == {"kind": None}


MATRIX = np.arange(6, dtype=np.float16).reshape(3, 2)


def test_vectors_belong_to_the_lines_of_the_items_or_to_their_numbers(tmp_path: Path, ratings: Path) -> None:
    np.save(tmp_path / "image.npy", MATRIX)
    (tmp_path / "items.csv").write_text(ITEMS)
    vectors = {"image": str(tmp_path / "image.npy")}
    lines = load_dataset("table", path=ratings, items=tmp_path / "items.csv", vectors=vectors).items
    assert {item: row["image"] for item, row in attributes(lines).items()} == {
        7: [0, 1],
        10: [2, 3],
        12: [4, 5],
    }
    (tmp_path / "by_number.csv").write_text("user,item,rating\na,2,1\nb,0,5\n")
    numbers = load_dataset("table", path=tmp_path / "by_number.csv", vectors=vectors).items
    assert attributes(numbers) == {n: {"image": MATRIX[n].tolist()} for n in range(3)}
    assert numbers.attributes["image"].dtype == pl.Array(pl.Float32, 2)


@pytest.mark.parametrize("what", ["nothing", "text", "row", "words", "short"])
def test_vectors_that_cannot_be_read_are_named(tmp_path: Path, ratings: Path, what: str) -> None:
    path = tmp_path / "image.npy"
    if what == "text":
        path.write_text("1,2")
    elif what != "nothing":
        arrays = {"row": MATRIX[0], "words": MATRIX.astype(str), "short": MATRIX[:2]}
        np.save(path, arrays[what])
    (tmp_path / "items.csv").write_text(ITEMS)
    message = {
        "nothing": "no such file",
        "text": "is no matrix as NumPy saves it (.npy)",
        "row": "holds float16 of shape [2], expected a matrix of numbers",
        "words": "holds <U32 of shape [3, 2], expected a matrix of numbers",
        "short": f"has 2 rows, expected 3, as many as {tmp_path / 'items.csv'} has",
    }[what]
    with pytest.raises(DataError) as error:
        load_dataset("table", path=ratings, items=tmp_path / "items.csv", vectors={"image": path})
    assert str(error.value) == f"{path}: {message}"


def test_tiktok_is_read_with_what_is_heard_and_seen(tiktok: Path) -> None:
    dataset = load_dataset(
        "table",
        path=tiktok / "interactions.csv.gz",
        user="user_id",
        item="item_id",
        feedback="implicit",
        vectors={"image": tiktok / "image_feat.npy", "audio": tiktok / "audio_feat.npy"},
    )
    assert (len(dataset.users), len(dataset.items), len(dataset)) == (9308, 6710, 68722)
    train = split(dataset, "cold-start", new_users=0.0, support_sizes=[0]).train
    assert train.items.features is not None and train.items.features.width == 2 * 33


@pytest.mark.parametrize(
    "form", ["tsv", "semicolon", "double colon", "gzip", "utf-16", "bom", "crlf", "quoted", "blank"]
)
def test_every_form_of_text_gives_the_same(tmp_path: Path, ratings: Path, form: str) -> None:
    path = tmp_path / "other.txt"
    text, options = RATINGS, {}
    match form:
        case "tsv":
            content = text.replace(",", "\t").encode()
        case "semicolon":
            content = text.replace(",", ";").encode()
        case "double colon":
            content = text.replace(",", "::").encode()
        case "gzip":
            content = gzip.compress(text.encode())
        case "utf-16":
            content, options = text.encode("utf-16"), {"encoding": "utf-16"}
        case "bom":
            content = codecs.BOM_UTF8 + text.encode()
        case "crlf":
            content = text.replace("\n", "\r\n").encode()
        case "quoted":
            content = b'"user","item","rating","time"\n"b","10","4","1000"\n"a","7",2.5,3000\nb,7,5,2000'
        case "blank":
            content = text.replace("\n", "\n\n").encode()
    path.write_bytes(content)
    assert triples(load_dataset("table", path=path, **options)) == triples(
        load_dataset("table", path=ratings)
    )


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        ("7", "8", [7, 8]),
        ("7", "007", ["007", "7"]),
        ("-1", "0", [-1, 0]),
        ("7", str(2**63 - 1), [7, 2**63 - 1]),
        ("7", str(2**63), ["7", str(2**63)]),
        ("7", "x", ["7", "x"]),
    ],
)
def test_ids_are_integers_where_all_are_written_as_such(
    tmp_path: Path, first: str, last: str, expected: list[Any]
) -> None:
    path = tmp_path / "r.csv"
    path.write_text(f"user,item,rating\n{first},i,1\n{last},i,2\n")
    assert load_dataset("table", path=path).users.ids.to_list() == expected


def test_an_id_far_down_may_be_the_first_that_is_no_integer(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    lines = [f"{row},7,{row % 5}" for row in range(3000)]
    path.write_text("\n".join(["user,item,rating", *lines, "x,7,3"]))
    users = load_dataset("table", path=path).users.ids
    assert users.to_list() == sorted([*map(str, range(3000)), "x"])


def test_parquet_gives_the_same_as_text(tmp_path: Path, ratings: Path) -> None:
    path = tmp_path / "ratings.parquet"
    pl.read_csv(ratings).with_columns(pl.lit("more").alias("other")).write_parquet(path)
    from_text, from_parquet = (load_dataset("table", path=file, time="time") for file in (ratings, path))
    assert triples(from_parquet) == triples(from_text)
    assert from_parquet.time is not None and from_parquet.time.tolist() == from_text.time.tolist()


def test_columns_may_have_other_names_and_places(tmp_path: Path) -> None:
    path = tmp_path / "r.tsv"
    path.write_text("stars\tbook\tx\treader\n3\tb1\t\tr1\n1\tb2\tq\tr1\n")
    dataset = load_dataset("table", path=path, user="reader", item="book", rating="stars")
    assert triples(dataset) == [("r1", "b1", 3.0), ("r1", "b2", 1.0)]


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("1700000000", 1_700_000_000),
        ("1.7e9", 1_700_000_000),
        ("1700000000.9", 1_700_000_000),
        ("2023-11-14", 1_699_920_000),
        ("2023-11-14T22:13:20", 1_700_000_000),
        ("2023-11-14 22:13:20", 1_700_000_000),
    ],
)
def test_times_are_numbers_or_dates(tmp_path: Path, written: str, seconds: int) -> None:
    path = tmp_path / "r.csv"
    path.write_text(f"user,item,rating,time\na,x,1,{written}\na,y,2,{written}\n")
    time = load_dataset("table", path=path, time="time").time
    assert time is not None and time.tolist() == [seconds, seconds]


def test_duplicates_by_policy(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("user,item,rating,time\na,x,1,30\nb,x,2,5\na,x,4,10\na,x,2,30\na,y,5,1\n")
    read = {
        policy: triples(load_dataset("table", path=path, time="time", duplicates=policy))
        for policy in ("last", "mean")
    }
    assert read["last"] == [("b", "x", 2.0), ("a", "x", 2.0), ("a", "y", 5.0)]
    assert read["mean"] == [("b", "x", 2.0), ("a", "x", pytest.approx(7 / 3)), ("a", "y", 5.0)]
    without_times = load_dataset("table", path=path, duplicates="last")
    assert triples(without_times) == [("b", "x", 2.0), ("a", "x", 2.0), ("a", "y", 5.0)]


def test_outliers_by_policy(ratings: Path) -> None:
    read = {
        policy: triples(load_dataset("table", path=ratings, low=3, high=4.5, outliers=policy))
        for policy in ("drop", "clip")
    }
    assert read["drop"] == [("b", 10, 4.0)]
    assert read["clip"] == [("b", 10, 4.0), ("a", 7, 3.0), ("b", 7, 4.5)]


FIELD = st.text(
    st.characters(codec="utf-8", exclude_characters="\x00\r", exclude_categories=("Cs",)),
    min_size=1,
    max_size=8,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pairs=st.lists(
        st.tuples(FIELD, FIELD, st.integers(-3, 3)), min_size=2, max_size=8, unique_by=lambda line: line[:2]
    )
)
def test_whatever_a_csv_writer_writes_is_read(tmp_path: Path, pairs: list[tuple[str, str, int]]) -> None:
    pairs = [("first", "first", 7), *pairs]
    with (tmp_path / "r.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_NONNUMERIC).writerows([("user", "item", "rating"), *pairs])
    read = triples(load_dataset("table", path=tmp_path / "r.csv"))
    assert [(str(user), str(item), rating) for user, item, rating in read] == pairs


def header_and(*lines: str) -> str:
    return "\n".join(("user,item,rating", *lines, ""))


FINE = ("a,x,1", "b,y,2")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "is empty, expected a header"),
        ("\n" + header_and(*FINE), {}, "line 1 is empty, expected a header"),
        (header_and(), {}, "has no interactions, expected at least one"),
        (header_and(*FINE, "c,x,five"), {}, "line 4, column 'rating': found 'five', expected a number"),
        (header_and(*FINE, "c,x,nan"), {}, "line 4, column 'rating': found nan, expected a finite number"),
        (header_and(*FINE, "c,x,-inf"), {}, "line 4, column 'rating': found -inf, expected a finite number"),
        (header_and(*FINE, "c,x,"), {}, "line 4, column 'rating': found nothing, expected a finite number"),
        (header_and(*FINE, "c,x"), {}, "line 4, column 'rating': found nothing, expected a finite number"),
        (header_and(*FINE, "", "c,,3"), {}, "line 5, column 'item': found nothing, expected an id"),
        (header_and('"a\nb",x,1', "c,x,z"), {}, "line 4, column 'rating': found 'z', expected a number"),
        (header_and('"a\nb",x,1', "c,x,"), {}, "line 4, column 'rating': found nothing"),
        (header_and(*FINE, "c,x,3,4"), {}, "line 4: found 4 fields, expected 3"),
        (
            header_and("a,x,1", "a,y,1"),
            {},
            "every rating is 1, expected at least two different ones (or implicit",
        ),
        (
            header_and(*FINE, "c,x,6"),
            {"low": 1, "high": 5},
            "line 4, column 'rating': found 6, expected a rating from 1 to 5 (or outliers='drop' or 'clip')",
        ),
        (
            header_and("1,7,1", "2,7,2", "1,7,3"),
            {},
            "line 4: user 1 and item 7 stand at line 2 already, expected once (or duplicates='last' or 'mean')",
        ),
        (header_and(*FINE), {"rating": "ratign"}, "unknown column 'ratign': did you mean 'rating'?"),
        (header_and(*FINE), {"user": "who"}, "unknown column 'who': expected one of item, rating, user"),
        (
            header_and(*FINE),
            {"separator": "\t"},
            "line 1: found the single column 'user,item,rating', expected 'user' and others "
            r"(is '\t' the right separator?)",
        ),
        (
            "user item rating\na x 1\n",
            {},
            "found the single column 'user item rating', expected 'user' and others",
        ),
        ("user,item,rating,user\na,x,1,a\n", {}, "line 1: column 'user' stands there twice, expected once"),
        (header_and("a,x,1,", "b,x,2"), {}, "line 2: found 4 fields, expected 3"),
        (
            "user,item,rating,time\na,x,1,2020-01-01\na,y,2,soon\n",
            {"time": "time"},
            "line 3, column 'time': found 'soon', expected a time (a number or an ISO date)",
        ),
        (
            "user,item,rating,time\na,x,1,5\na,y,2,soon\n",
            {"time": "time"},
            "line 3, column 'time': found 'soon', expected a number",
        ),
        (
            "user,item,rating,time\na,x,1,5\na,y,2,\n",
            {"time": "time"},
            "line 3, column 'time': found nothing, expected a time",
        ),
    ],
)
def test_bad_ratings_are_named(tmp_path: Path, text: str, options: dict[str, Any], message: str) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as error:
        load_dataset("table", path=path, **options)
    said = str(error.value)
    assert said.startswith(str(path)) and message in said and "\n" not in said


@pytest.mark.parametrize(
    ("side", "text", "message"),
    [
        (
            "users",
            "user,age\na,1\nb,2\na,3\n",
            "line 4, column 'user': id 'a' is repeated, it stands at line 2 already",
        ),
        ("users", "name,age\na,1\n", "unknown column 'user'"),
        ("users", "user,age\n,1\na,2\n", "line 2, column 'user': found nothing, expected an id"),
        ("users", "user,age\nA,1\nB,2\n", "none of the ids occurs in"),
        ("items", "item,price\n7,inf\n", "line 2, column 'price': found inf, expected a finite number"),
        ("items", "", "is empty, expected a header"),
    ],
)
def test_bad_entity_tables_are_named(
    tmp_path: Path, ratings: Path, side: str, text: str, message: str
) -> None:
    path = tmp_path / f"{side}.csv"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        load_dataset("table", path=ratings, **{side: path})
    assert str(error.value).startswith(str(path)) and message in str(error.value)


def broken(path: Path, kind: str) -> tuple[Path, str]:
    """A file that cannot be read, and what should be said of it."""
    match kind:
        case "missing":
            return path, "no such file"
        case "directory":
            path.mkdir()
            return path, "is a directory, expected a file"
        case "latin-1":
            path.write_bytes("user,item,rating\na,x,1\né,y,2\n".encode("latin-1"))
            return path, "line 3: found byte 0xE9, expected text in utf-8 (another encoding?)"
        case "latin-1 header":
            path.write_bytes("user,item,rating,é\na,x,1,\n".encode("latin-1"))
            return path, "line 1: found byte 0xE9, expected text in utf-8 (another encoding?)"
        case "not ascii":
            path.write_bytes("user,item,rating\na,x,1\né,y,2\n".encode())
            return path, "line 3: found byte 0xC3, expected text in ascii (another encoding?)"
        case "truncated gzip":
            lines = "".join(f"{n},{n * 7919 % 1000},{n % 5}\n" for n in range(5000))
            path.write_bytes(gzip.compress(f"user,item,rating\n{lines}".encode())[:-2000])
            return path, "cannot be read (Compressed file ended before the end-of-stream marker"
        case "gzip header only":
            path.write_bytes(gzip.compress(b"user,item,rating\na,b,1\n")[:12])
            return path, "cannot be read (Compressed file ended before the end-of-stream marker"
        case "truncated parquet":
            buffer = io.BytesIO()
            pl.DataFrame({"user": [1, 2], "item": [1, 2], "rating": [1, 2]}).write_parquet(buffer)
            path = path.with_suffix(".parquet")
            path.write_bytes(buffer.getvalue()[:-20])
            return path, "is no Parquet file"
        case "text as parquet":
            path = path.with_suffix(".parquet")
            path.write_text(RATINGS)
            return path, "is no Parquet file"
        case "empty parquet":
            path = path.with_suffix(".parquet")
            path.write_bytes(b"")
            return path, "is no Parquet file"
        case "parquet as text":
            pl.DataFrame({"user": [1, 2], "item": [1, 2], "rating": [1, 2]}).write_parquet(path)
            return path, "line 1: found byte 0x"
        case "parquet of strings":
            path = path.with_suffix(".parquet")
            pl.DataFrame({"user": [1, 2], "item": [1, 2], "rating": ["1", "2"]}).write_parquet(path)
            return path, "column 'rating': found String, expected ratings (numbers)"
        case "parquet with nan":
            path = path.with_suffix(".parquet")
            pl.DataFrame({"user": [1, 2], "item": [1, 2], "rating": [1.0, float("nan")]}).write_parquet(path)
            return path, "row 2, column 'rating': found nan, expected a finite number"
        case "parquet without items":
            path = path.with_suffix(".parquet")
            pl.DataFrame({"user": [1, 2], "rating": [1, 2]}).write_parquet(path)
            return path, "unknown column 'item'"
        case "parquet with ids that are dates":
            path = path.with_suffix(".parquet")
            day = datetime(2020, 1, 1)
            pl.DataFrame({"user": [day, day], "item": [1, 2], "rating": [1, 2]}).write_parquet(path)
            return path, "column 'user': found Datetime"
    raise AssertionError(kind)


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "directory",
        "latin-1",
        "latin-1 header",
        "not ascii",
        "truncated gzip",
        "gzip header only",
        "truncated parquet",
        "text as parquet",
        "empty parquet",
        "parquet as text",
        "parquet of strings",
        "parquet with nan",
        "parquet without items",
        "parquet with ids that are dates",
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path: Path, kind: str) -> None:
    path, message = broken(tmp_path / "ratings.csv", kind)
    options = {"encoding": "ascii"} if kind == "not ascii" else {}
    with pytest.raises(DataError) as error:
        load_dataset("table", path=path, **options)
    assert str(error.value).startswith(str(path)) and message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"usr": "u"}, "unknown option 'usr': did you mean 'user'?"),
        ({"encoding": "utf-9"}, "unknown encoding 'utf-9', expected one that Python knows"),
        ({"low": 1}, "expected both options low and high"),
        ({"step": 1}, "expected both options low and high"),
        ({"low": 5, "high": 1}, "low is 5, expected less than high, 1"),
        ({"low": 1, "high": 5, "relevant_from": 9}, "relevant_from is 9, expected 1 to 5"),
        ({"relevant_from": 9}, "relevant_from is 9, expected 2.5 to 5"),
        ({"low": 1, "high": 5, "step": 0}, "step is 0, expected more than 0 and at most 4"),
        ({"duplicates": "first"}, "duplicates is 'first', expected 'error', 'last' or 'mean'"),
        ({"lists": {"genres": "|"}}, "unknown column 'genres'"),
        ({"title": "name"}, "title is 'name', expected a column of items, which are not given"),
    ],
)
def test_wrong_options_are_named(ratings: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, DataError)) as error:
        load_dataset("table", path=ratings, **options)
    assert message in str(error.value) and "\n" not in str(error.value)

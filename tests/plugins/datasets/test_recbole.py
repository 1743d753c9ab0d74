"""RecBole's atomic files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metarec import load_dataset
from metarec.data import RatingScale
from metarec.errors import DataError

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\nu1\t7\t4\t1000\nu2\t7\t1\t1001.5\nu1\t8\t2\t9\n"
USER = "user_id:token\tage:token\tscore:float\nu2\t024\t0.5\nu1\t31\t\n"
ITEM = (
    "item_id:token\tname:token_seq\tclass:token_seq\tvector:float_seq\n"
    '7\tThe "Heat\tCrime Drama\t0.5 -1\n8\tAlien\t\t1e3 2\n'
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for suffix, text in {"inter": INTER, "user": USER, "item": ITEM}.items():
        (tmp_path / f"films.{suffix}").write_text(text)
    return tmp_path


def test_types_are_those_of_the_headers(folder: Path) -> None:
    dataset = load_dataset("recbole", path=folder, title="name")
    assert dataset.name == "films"
    assert dataset.users.ids.to_list() == ["u1", "u2"] and dataset.items.ids.to_list() == [7, 8]
    assert dataset.user.tolist() == [0, 1, 0] and dataset.item.tolist() == [0, 0, 1]
    assert dataset.rating.tolist() == [4.0, 1.0, 2.0]
    assert dataset.time is not None and dataset.time.tolist() == [1000, 1001, 9]
    assert dataset.scale == RatingScale(1.0, 4.0, relevant_from=4.0, step=1.0)
    assert dataset.users.attributes.to_dicts() == [{"age": "31", "score": None}, {"age": "024", "score": 0.5}]
    assert dataset.items.attributes.to_dicts() == [
        {"name": 'The "Heat', "class": ["Crime", "Drama"], "vector_0": 0.5, "vector_1": -1.0},
        {"name": "Alien", "class": None, "vector_0": 1000.0, "vector_1": 2.0},
    ]
    assert dataset.items.names.to_list() == ['The "Heat', "Alien"]


def test_interactions_alone_and_implicit(tmp_path: Path) -> None:
    (tmp_path / "clicks.inter").write_text("session:token\tpage:token\n3\ta\n1\tb\n")
    dataset = load_dataset("recbole", path=tmp_path, user="session", item="page", feedback="implicit")
    assert dataset.users.ids.to_list() == [1, 3] and dataset.rating.tolist() == [1.0, 1.0]
    assert dataset.scale.implicit and dataset.time is None


@pytest.mark.parametrize(
    ("suffix", "text", "message"),
    [
        (
            "inter",
            INTER.replace("rating:float", "rating"),
            "films.inter, line 1, column 'rating': unknown type ''",
        ),
        ("inter", INTER.replace("float", "flaot"), "unknown type 'flaot': did you mean 'float'?"),
        ("inter", INTER.replace("user_id", "user"), "films.inter: unknown column 'user_id'"),
        (
            "inter",
            INTER + "u2\t8\tx\t1\n",
            "films.inter, line 5, column 'rating': found 'x', expected a number",
        ),
        (
            "inter",
            INTER + "u1\t7\t1\t1\n",
            "films.inter, line 5: user 'u1' and item 7 stand at line 2 already",
        ),
        (
            "user",
            USER.replace("0.5", "half"),
            "films.user, line 2, column 'score': found 'half', expected a number",
        ),
        (
            "item",
            ITEM.replace("1e3 2", "1e3"),
            "films.item, line 3, column 'vector': found '1e3', expected 2 numbers",
        ),
        (
            "item",
            ITEM.replace("1e3 2", "1e3 b"),
            "films.item, line 3, column 'vector_1': found 'b', expected a number",
        ),
        ("item", "", "films.item: line 1 is empty, expected a header"),
    ],
)
def test_bad_files_are_named(folder: Path, suffix: str, text: str, message: str) -> None:
    (folder / f"films.{suffix}").write_text(text)
    with pytest.raises(DataError) as error:
        load_dataset("recbole", path=folder)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("case", ["no folder", "no file", "two files"])
def test_the_folder_must_have_one_file_of_interactions(folder: Path, case: str) -> None:
    path, message = folder, "found none, expected one file NAME.inter"
    match case:
        case "no folder":
            path, message = folder / "x", "no such folder, expected one with a file NAME.inter"
        case "no file":
            (folder / "films.inter").unlink()
        case "two files":
            (folder / "books.inter").write_text(INTER)
            message = "found books.inter, films.inter, expected one file NAME.inter"
    with pytest.raises(DataError) as error:
        load_dataset("recbole", path=path)
    assert str(error.value) == f"{path}: {message}"


def test_movielens_as_recbole_packs_it_is_movielens(movielens: Path) -> None:
    ours: Any = load_dataset("movielens", path=movielens / "ml-100k")
    theirs = load_dataset("recbole", path=movielens / "ml-100k", title="movie_title")
    assert (len(theirs.users), len(theirs.items), len(theirs)) == (943, 1682, 100_000)
    assert theirs.user.equal(ours.user) and theirs.item.equal(ours.item) and theirs.rating.equal(ours.rating)
    assert theirs.time is not None and theirs.time.equal(ours.time)
    assert theirs.scale == ours.scale

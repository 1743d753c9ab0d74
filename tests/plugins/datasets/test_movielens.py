"""MovieLens directories: small ones written here, and the real ones where METAREC_TEST_DATA has them."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from metarec import load_dataset
from metarec.data import Dataset, Entities, RatingScale
from metarec.errors import DataError


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name.replace("_dot_", ".")).write_text(text, encoding="latin-1")
    return folder


@pytest.fixture
def one_million(tmp_path: Path) -> Path:
    return write(
        tmp_path,
        ratings_dot_dat="2::10::5::978300760\n1::30::3::978302109\n2::30::4::978301968\n",
        users_dot_dat="1::F::1::10::48067\n2::M::56::16::01060\n",
        movies_dot_dat="10::Toy Story (1995)::Animation|Comedy\n20::Amélie::Drama\n30::Heat (1995)::Crime\n",
    )


@pytest.fixture
def hundred_thousand(tmp_path: Path) -> Path:
    flags = {"Toy Story (1995)": {3, 4, 5}, 'Quoted "Film" (1996)': {0}}
    items = [
        "|".join(
            [str(row), title, "01-Jan-1995", "", "http://", *("1" if n in on else "0" for n in range(19))]
        )
        for row, (title, on) in enumerate(flags.items(), start=1)
    ]
    return write(
        tmp_path,
        u_dot_data="7\t2\t3\t881250949\n7\t1\t1\t881250950\n8\t1\t5\t1\n",
        u_dot_user="7|24|M|technician|85711\n8|53|F|other|T8H1N\n",
        u_dot_item="\n".join(items),
    )


def triples(dataset: Dataset) -> list[tuple[int, int, float]]:
    users = dataset.users.ids.to_list()
    items = dataset.items.ids.to_list()
    return [
        (users[user], items[item], rating)
        for user, item, rating in zip(
            dataset.user.tolist(), dataset.item.tolist(), dataset.rating.tolist(), strict=True
        )
    ]


def attributes_of(entities: Entities, key: int) -> dict[str, object]:
    return entities.attributes.row(entities.ids.to_list().index(key), named=True)


def test_the_1m_form(one_million: Path) -> None:
    dataset = load_dataset("movielens", path=one_million)
    assert triples(dataset) == [(2, 10, 5.0), (1, 30, 3.0), (2, 30, 4.0)]
    assert dataset.time is not None and dataset.time.tolist() == [978300760, 978302109, 978301968]
    assert dataset.scale == RatingScale(1.0, 5.0, relevant_from=4.0, step=1.0)
    assert attributes_of(dataset.users, 2) == {
        "gender": "M",
        "age": "56+",
        "occupation": "self-employed",
        "zip": "01060",
    }
    toy_story = {"title": "Toy Story (1995)", "year": 1995, "genres": ["Animation", "Comedy"]}
    assert attributes_of(dataset.items, 10) == toy_story
    assert attributes_of(dataset.items, 20) == {"title": "Amélie", "year": None, "genres": ["Drama"]}
    assert dataset.items.names.to_list() == ["Toy Story (1995)", "Amélie", "Heat (1995)"]


def test_extra_content_joins_by_movie(one_million: Path) -> None:
    people = "Michael Mann::Michael Mann (story), Michael Mann (play)::Al Pacino, N. N."
    line = f"30::Heat::1995::R::15 Dec 1995::Crime::{people}::A heist.::http"
    write(
        one_million,
        movies_extrainfos_dot_dat=f"{line}\n10::Toy Story::1995::N/A::x::y::N/A::N/A::N/A::N/A::N/A\n",
    )
    items = load_dataset("movielens", path=one_million).items
    heat = attributes_of(items, 30)
    assert {name: heat[name] for name in ("rated", "directors", "writers", "actors", "plot")} == {
        "rated": "R",
        "directors": ["Michael Mann"],
        "writers": ["Michael Mann"],
        "actors": ["Al Pacino", "N. N."],
        "plot": "A heist.",
    }
    for key in (10, 20):
        assert all(
            attributes_of(items, key)[name] is None for name in ("rated", "directors", "actors", "plot")
        )


def test_ratings_may_be_a_gzipped_csv_without_times(one_million: Path) -> None:
    (one_million / "ratings.dat").unlink()
    (one_million / "ratings.csv.gz").write_bytes(gzip.compress(b"user_id,movie_id,rating\n2,10,5\n1,30,3\n"))
    dataset = load_dataset("movielens", path=one_million)
    assert triples(dataset) == [(2, 10, 5.0), (1, 30, 3.0)] and dataset.time is None


def test_the_100k_form(hundred_thousand: Path) -> None:
    dataset = load_dataset("movielens", path=hundred_thousand)
    assert triples(dataset) == [(7, 2, 3.0), (7, 1, 1.0), (8, 1, 5.0)]
    assert attributes_of(dataset.users, 8) == {
        "age": 53,
        "gender": "F",
        "occupation": "other",
        "zip": "T8H1N",
    }
    assert attributes_of(dataset.items, 1)["genres"] == ["Animation", "Children's", "Comedy"]
    assert attributes_of(dataset.items, 2) == {
        "title": 'Quoted "Film" (1996)',
        "year": 1996,
        "genres": ["unknown"],
    }


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "ratings.dat",
            "1::10::five::1\n",
            "ratings.dat, line 1, column 'rating': found 'five', expected a number",
        ),
        (
            "ratings.dat",
            "1::10::6::1\n",
            "ratings.dat, line 1, column 'rating': found 6, expected a rating from 1 to 5",
        ),
        ("ratings.dat", "1::10::5::1\n1::10::4::1\n", "line 2: user 1 and item 10 stand at line 1 already"),
        (
            "users.dat",
            "1::F::1::10::4\n2::M::57::1::1\n",
            "users.dat, line 2, column 'age': found '57', expected one of 1, 18",
        ),
        (
            "users.dat",
            "x::F::1::10::4\n",
            "users.dat, line 1, column 'user_id': found 'x', expected an integer",
        ),
        (
            "movies.dat",
            "10::A::B\n10::C::D\n",
            "movies.dat, line 2, column 'movie_id': id 10 is repeated, it stands at line 1",
        ),
        ("movies.dat", "10::A\n", "movies.dat, line 1: found 2 fields, expected 3 (movie_id, title, genres)"),
    ],
)
def test_bad_lines_are_named(one_million: Path, file: str, text: str, message: str) -> None:
    (one_million / file).write_text(text)
    with pytest.raises(DataError) as error:
        load_dataset("movielens", path=one_million)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_or_directory_is_named(one_million: Path) -> None:
    (one_million / "users.dat").unlink()
    with pytest.raises(DataError, match=r"users\.dat: no such file"):
        load_dataset("movielens", path=one_million)
    (one_million / "ratings.dat").unlink()
    with pytest.raises(DataError, match="is no MovieLens directory, expected one with u"):
        load_dataset("movielens", path=one_million)
    with pytest.raises(DataError, match="no such directory"):
        load_dataset("movielens", path=one_million / "nowhere")


@pytest.mark.parametrize(
    ("folder", "users", "rated", "ratings"),
    [("ml-100k", 943, 1682, 100_000), ("ml-1m", 6040, 3706, 1_000_209)],
)
def test_counts_are_those_that_grouplens_gives(
    movielens: Path, folder: str, users: int, rated: int, ratings: int
) -> None:
    dataset = load_dataset("movielens", path=movielens / folder)
    assert (len(dataset.users), len(dataset)) == (users, ratings)
    assert (dataset.user.unique().numel(), dataset.item.unique().numel()) == (users, rated)
    assert dataset.items.attributes.null_count()["title"].item() == 0

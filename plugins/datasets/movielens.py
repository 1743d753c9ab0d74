"""The MovieLens data sets 100K and 1M, as GroupLens packs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl

from metarec import hookimpl
from metarec.data import (
    Columns,
    Dataset,
    EncoderSpec,
    Layout,
    RatingScale,
    Reader,
    Table,
    build_dataset,
    read_text,
    typed,
)
from metarec.errors import DataError

COLUMNS = Columns("user_id", "movie_id", "rating", "timestamp")
RATINGS = ("user_id", "movie_id", "rating", "timestamp")
RATING_TYPES = {"user_id": pl.Int64, "movie_id": pl.Int64, "rating": pl.Float32, "timestamp": pl.Int64}
FORMS = "u.data, u.user and u.item (100K), or ratings.dat or ratings.csv.gz, users.dat and movies.dat (1M)"
USERS = ("user_id", "age", "gender", "occupation", "zip")

AGES = {1: "Under 18", 18: "18-24", 25: "25-34", 35: "35-44", 45: "45-49", 50: "50-55", 56: "56+"}
OCCUPATIONS = (
    "other",
    "academic/educator",
    "artist",
    "clerical/admin",
    "college/grad student",
    "customer service",
    "doctor/health care",
    "executive/managerial",
    "farmer",
    "homemaker",
    "K-12 student",
    "lawyer",
    "programmer",
    "retired",
    "sales/marketing",
    "scientist",
    "self-employed",
    "technician/engineer",
    "tradesman/craftsman",
    "unemployed",
    "writer",
)
GENRES = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
EXTRA = (
    "movie_id",
    "title",
    "year",
    "rated",
    "released",
    "genres",
    "directors",
    "writers",
    "actors",
    "plot",
    "poster",
)
PEOPLE = ("directors", "writers", "actors")
ROLE = r"\s*\([^)]*\)"

ZIP = EncoderSpec("categorical", {"min_count": 10})
AGE_100K = EncoderSpec("binned", {"edges": [18, 25, 35, 45, 50, 56]})
"""The borders of the 1M form's classes."""
ITEM_ENCODERS = {
    "year": EncoderSpec("binned", {"bins": 8}),
    "plot": EncoderSpec("hashed-text"),
    **{role: EncoderSpec("multi-categorical", {"min_count": 5}) for role in PEOPLE},
}


class MovieLens(Reader):
    """A MovieLens directory: ratings from 1 to 5, relevant from 4.

    Users have gender, age (a number in 100K, one of seven classes in 1M), occupation and zip; movies have title, year
    and genres. Where a directory of the 1M form holds ``movies_extrainfos.dat`` (extra content that MeLU's authors
    gathered), movies also have rated, directors, writers, actors and plot.

    Parameters
    ----------
    path : Path
        The directory: ``u.data, u.user, u.item`` (100K; RecBole's ``ml-100k.inter`` and ``ml-100k.user`` stand in for
        the first two), or ``ratings.dat, users.dat, movies.dat`` (1M; ``ratings.csv.gz`` with the columns user_id,
        movie_id and rating stands in for the first).

    References
    ----------
    Harper & Konstan 2015, The MovieLens datasets. Lee et al. 2019, MeLU (the extra content).
    """

    name = "movielens"

    def __init__(self, *, path: Path) -> None:
        self.path = path

    def read(self) -> Dataset:
        """Read the form that the directory has."""
        if not self.path.is_dir():
            raise DataError(f"{self.path}: no such directory, expected one with {FORMS}")
        has = {file.name for file in self.path.iterdir()}
        if "u.data" in has or "ml-100k.inter" in has:
            return self._read_100k()
        if "ratings.dat" in has:
            return self._read_1m(self._ratings("ratings.dat", _plain("::", RATINGS)))
        if "ratings.csv.gz" in has:
            return self._read_1m(self._untimed_ratings("ratings.csv.gz"))
        raise DataError(f"{self.path}: is no MovieLens directory, expected one with {FORMS}")

    def _read_100k(self) -> Dataset:
        if (self.path / "u.data").exists():
            ratings = self._ratings("u.data", _plain("\t", RATINGS))
            users = self._entities("u.user", _plain("|", USERS))
        else:
            ratings = self._ratings("ml-100k.inter", Layout("\t", names=RATINGS, quote=None))
            users = self._entities("ml-100k.user", Layout("\t", names=USERS, quote=None))
        users = typed(users, "age", pl.Int64)
        return _build("movielens-100k", ratings, users, self._items_100k(), {"age": AGE_100K, "zip": ZIP})

    def _read_1m(self, ratings: Table) -> Dataset:
        return _build("movielens-1m", ratings, self._users_1m(), self._items_1m(), {"zip": ZIP})

    def _ratings(self, file: str, layout: Layout) -> Table:
        return read_text(self.path / file, RATING_TYPES, layout)

    def _untimed_ratings(self, file: str) -> Table:
        types = {name: dtype for name, dtype in RATING_TYPES.items() if name != COLUMNS.time}
        return read_text(self.path / file, types, Layout(","))

    def _items_100k(self) -> Table:
        names = ("movie_id", "title", "released", "video_released", "url", *GENRES)
        items = self._entities("u.item", _plain("|", names))
        flagged = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in GENRES]
        genres = pl.concat_list(flagged).list.drop_nulls()
        return replace(items, frame=items.frame.select("movie_id", "title", _year(), genres.alias("genres")))

    def _users_1m(self) -> Table:
        names = ("user_id", "gender", "age", "occupation", "zip")
        users = self._entities("users.dat", _plain("::", names))
        users = _labelled(users, "age", AGES)
        return _labelled(users, "occupation", dict(enumerate(OCCUPATIONS)))

    def _items_1m(self) -> Table:
        items = self._entities("movies.dat", _plain("::", ("movie_id", "title", "genres")))
        frame = items.frame.select("movie_id", "title", _year(), pl.col("genres").str.split("|"))
        if (self.path / "movies_extrainfos.dat").exists():
            frame = frame.join(self._extra(), on="movie_id", how="left", maintain_order="left")
        return replace(items, frame=frame)

    def _extra(self) -> pl.DataFrame:
        extra = read_text(self.path / "movies_extrainfos.dat", layout=_plain("::", EXTRA))
        known = typed(extra, "movie_id", pl.Int64).frame.with_columns(pl.col(pl.String).replace("N/A", None))
        people = [
            pl.col(role).str.replace_all(ROLE, "").str.split(", ").list.unique(maintain_order=True)
            for role in PEOPLE
        ]
        return known.select("movie_id", "rated", *people, "plot")

    def _entities(self, file: str, layout: Layout) -> Table:
        table = read_text(self.path / file, layout=replace(layout, encoding="latin-1"))
        return typed(table, table.frame.columns[0], pl.Int64)


def _build(
    name: str, ratings: Table, users: Table, items: Table, user_encoders: dict[str, EncoderSpec]
) -> Dataset:
    timed = COLUMNS.time in ratings.frame.columns
    return build_dataset(
        name,
        ratings,
        columns=COLUMNS if timed else replace(COLUMNS, time=None),
        entities={"user": users, "item": items},
        scale=RatingScale(1.0, 5.0, relevant_from=4.0, step=1.0),
        encoders={"user": user_encoders, "item": ITEM_ENCODERS},
        display={"item": "title"},
    )


def _plain(separator: str, names: tuple[str, ...]) -> Layout:
    return Layout(separator, header=False, names=names, quote=None)


def _year() -> pl.Expr:
    return pl.col("title").str.extract(r"\((\d{4})\)\s*$").cast(pl.Int64).alias("year")


def _labelled(table: Table, name: str, labels: dict[int, str]) -> Table:
    """The same table, the codes of a column replaced by what they mean."""
    codes = typed(table, name, pl.Int64).frame[name]
    table.check(~codes.is_in(list(labels)).fill_null(True), name, f"one of {', '.join(map(str, labels))}")
    meant = codes.replace_strict(labels, return_dtype=pl.Enum(list(labels.values())))
    return replace(table, frame=table.frame.with_columns(meant))


@hookimpl
def register_datasets(register: Callable[[type[Reader]], None]) -> None:
    """Register `MovieLens`."""
    register(MovieLens)

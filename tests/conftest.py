"""Fixtures that all tests may use."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

# Of the workers that share a machine each takes one core. Torch reads this once, when it is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import settings

from metarec.data import Dataset, EncoderSpec, Entities, RatingScale
from metarec.evaluation import Row

# The same examples in every run, and no time limit for one, so that a busy machine fails no test.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Dataset]:
    """A function that draws a small data set with attributes of every kind on both sides."""
    return generate_dataset


@pytest.fixture
def movielens() -> Path:
    """The folder with the MovieLens data sets, which are not ours to ship."""
    folder = os.environ.get("METAREC_TEST_DATA")
    if not folder or not (Path(folder) / "ml-1m").is_dir():
        pytest.skip("METAREC_TEST_DATA names no folder with MovieLens")
    return Path(folder)


@pytest.fixture
def tiktok() -> Path:
    """The folder with TikTok's interactions and vectors, which are not ours to ship."""
    folder = os.environ.get("METAREC_TEST_DATA")
    if not folder or not (Path(folder) / "tiktok").is_dir():
        pytest.skip("METAREC_TEST_DATA names no folder with TikTok")
    return Path(folder) / "tiktok"


@pytest.fixture
def make_row() -> Callable[..., Row]:
    """A function that makes a row of a report, of which only what matters to a test need be given."""
    return _row


def _row(**values: Any) -> Row:
    algorithm = values.get("algorithm", "new")
    row: dict[str, Any] = {
        "dataset": "made-up",
        "protocol": "cold-start",
        "seed": 0,
        "list": "query",
        "side": "user",
        "algorithm": algorithm,
        "is_floor": algorithm.startswith("floor"),
        "scenario": "new-user",
        "support": 3,
        "metric": "rmse",
        "higher_is_better": False,
        "value": 1.0,
        "low": 0.9,
        "high": 1.1,
        "level": 0.95,
        "entities": 10,
        "best_floor": "floor",
        "gain": 0.0,
        "gain_low": -0.1,
        "gain_high": 0.1,
    }
    assert set(values) <= set(row)
    return cast(Row, row | values)


def generate_dataset(
    *, users: int = 60, items: int = 40, density: float = 0.5, implicit: bool = False, seed: int = 0
) -> Dataset:
    """Ratings from 1 to 5 by attributes, biases, a few factors and noise; or who chose what.

    Parameters
    ----------
    users, items : int
        Entities per side.
    density : float
        Share of the pairs that are rated; where implicit, the likelier ones are chosen.
    implicit : bool
        Whether every rating is 1.
    seed : int
    """
    random = np.random.default_rng(seed)
    user_table, user_effect = _users(users, random)
    item_table, item_effect = _items(items, random)
    factors = random.normal(size=(users, 3)) @ random.normal(size=(3, items)) * 0.4
    liking = user_effect[:, None] + item_effect + factors + random.normal(scale=0.5, size=(users, items))
    chance = random.random((users, items)) - (0.2 * liking if implicit else 0.0)
    user, item = np.nonzero(chance < np.quantile(chance, density))
    rating = np.ones(len(user)) if implicit else np.clip(np.rint(3.4 + liking[user, item]), 1, 5)
    order = random.permutation(len(user))
    return Dataset(
        name="generated",
        users=user_table,
        items=item_table,
        user=torch.from_numpy(user[order]).to(torch.int32),
        item=torch.from_numpy(item[order]).to(torch.int32),
        rating=torch.from_numpy(rating[order]).to(torch.float32),
        scale=RatingScale.for_implicit() if implicit else RatingScale(1.0, 5.0, relevant_from=4.0, step=1.0),
        time=torch.from_numpy(random.integers(1_000_000, size=len(user))),
    )


def _users(count: int, random: np.random.Generator) -> tuple[Entities, np.ndarray]:
    age = random.integers(18, 80, count)
    occupation = random.choice(["artist", "engineer", "farmer", "nurse"], count)
    effect = 0.01 * (age - 45) + 0.3 * (occupation == "nurse") + random.normal(scale=0.4, size=count)
    attributes = pl.DataFrame(
        {
            "age": [
                None if missing else int(a)
                for a, missing in zip(age, random.random(count) < 0.1, strict=True)
            ],
            "occupation": occupation,
        },
        schema={"age": pl.Int64, "occupation": pl.String},
    )
    ids = pl.Series("user", [f"u{row}" for row in range(count)])
    return Entities(ids, attributes, encoders={"age": EncoderSpec("binned", {"bins": 4})}), effect


def _items(count: int, random: np.random.Generator) -> tuple[Entities, np.ndarray]:
    kinds = np.array(["comedy", "drama", "horror", "western"])
    has = random.random((count, len(kinds))) < 0.4
    price = random.gamma(2.0, 5.0, count)
    effect = has @ np.array([0.3, 0.5, -0.5, 0.0]) - 0.02 * price + random.normal(scale=0.4, size=count)
    attributes = pl.DataFrame(
        {
            "title": [f"Item number {row}" for row in range(count)],
            "kinds": [kinds[row].tolist() for row in has],
            "price": price,
            "year": random.integers(1990, 2001, count),
        },
        schema={"title": pl.String, "kinds": pl.List(pl.String), "price": pl.Float64, "year": pl.Int64},
    )
    ids = pl.Series("item", np.arange(count) + 1000)
    return Entities(ids, attributes, encoders={"title": None}, display="title"), effect

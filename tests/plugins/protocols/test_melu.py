"""MeLU's protocol: four partitions by year and user, ten random queries each."""

from dataclasses import replace

import polars as pl
import pytest

from metarec.errors import DataError
from metarec.plugins.protocols.melu import MeLU

IS_NEW = {
    "warm": (False, False),
    "new-user": (True, False),
    "new-item": (False, True),
    "new-both": (True, True),
}
"""Whether the user and the item of a partition are new."""


@pytest.fixture(scope="module")
def dataset(make_dataset):
    """About 14 new and 35 old items per user; some items have no year."""
    dataset = make_dataset(users=80, items=200, density=0.25)
    year = dataset.items.attributes["year"].scatter([3, 4, 5], None)
    return replace(
        dataset, items=replace(dataset.items, attributes=dataset.items.attributes.with_columns(year))
    )


@pytest.fixture(scope="module")
def made(dataset, unfold):
    return unfold(dataset, MeLU().split(dataset, seed=0))


def new_items(dataset):
    year = dataset.items.attributes["year"]
    return set(dataset.items.ids.filter(year >= 1998)), set(dataset.items.ids.filter(year < 1998))


def new_users(made):
    """A user is in two partitions of two, so the few that are kept nowhere do not matter."""
    return {user for scenario in ("new-user", "new-both") for user in made.cells(scenario)[0].query}


def partitions(made):
    """The ratings of each scenario's partition, by user."""
    new, old = new_items(made.dataset)
    parts = {scenario: {} for scenario in IS_NEW}
    for user, item, rating in made.everything:
        if item in new or item in old:
            which = (user in new_users(made), item in new)
            scenario = next(name for name, its in IS_NEW.items() if its == which)
            parts[scenario].setdefault(user, []).append((user, item, rating))
    return parts


def test_every_task_is_a_users_with_13_to_100_ratings_and_10_of_them_are_the_query(made):
    assert made.scenarios == list(IS_NEW)
    for scenario, ratings in partitions(made).items():
        (cell,) = made.cells(scenario)
        kept = {user: part for user, part in ratings.items() if 13 <= len(part) <= 100}
        assert len(kept) >= 5 and set(cell.query) == set(kept)
        for user, part in kept.items():
            assert len(cell.query[user]) == 10
            assert sorted(cell.query[user] + cell.support[user]) == sorted(part)


def test_a_fifth_of_the_users_is_new(made):
    assert len(new_users(made)) == 16
    assert not new_users(made) & {user for name in ("warm", "new-item") for user in made.cells(name)[0].query}


def test_the_training_set_is_the_support_of_warm(made):
    (warm,) = made.cells("warm")
    assert sorted(made.train) == sorted(triple for part in warm.support.values() for triple in part)


def test_items_without_a_year_are_nowhere(made):
    unknown = set(made.dataset.items.ids.gather([3, 4, 5]))
    used = {
        item for scenario in IS_NEW for part in made.cells(scenario)[0].query.values() for _, item, _ in part
    }
    assert not unknown & (used | made.known_items)


def test_only_warm_may_use_what_is_known_of_a_user(made):
    for cell in made.split.cells:
        rows = cell.tasks.support.entities.rows
        assert bool((rows >= 0).all()) if cell.scenario == "warm" else bool((rows == -1).all())
        assert cell.support is None and cell.lists == ("query",)


def test_with_history_new_item_has_the_training_ratings_in_its_support(dataset, made, unfold):
    with_history = unfold(dataset, MeLU(history=True).split(dataset, seed=0))
    (plain,), (found,) = made.cells("new-item"), with_history.cells("new-item")
    assert found.query == plain.query
    for user, part in found.support.items():
        training = [triple for triple in made.train if triple[0] == user]
        assert sorted(part) == sorted(plain.support[user] + training)
    known = [
        cell.tasks.support.entities.rows for cell in with_history.split.cells if cell.scenario == "new-item"
    ]
    assert bool((known[0] >= 0).any())
    for scenario in ("warm", "new-user", "new-both"):
        assert with_history.cells(scenario) == made.cells(scenario)


def test_seeds_draw_other_users_and_queries(dataset, made, unfold):
    same, other = (unfold(dataset, MeLU().split(dataset, seed=seed)) for seed in (0, 1))
    assert same.cells("warm") == made.cells("warm") and same.train == made.train
    assert new_users(other) != new_users(made)


def test_what_it_needs_is_said_in_one_line(make_dataset, dataset):
    with pytest.raises(
        DataError, match=r"^protocol 'melu': data set 'generated' is implicit, expected ratings$"
    ):
        MeLU().split(make_dataset(implicit=True), seed=0)
    without = replace(dataset, items=replace(dataset.items, attributes=pl.DataFrame({"title": ["a"] * 200})))
    with pytest.raises(
        DataError,
        match=r"^protocol 'melu': items of data set 'generated' have no attribute 'year' \(found: title\)$",
    ):
        MeLU().split(without, seed=0)
    few = make_dataset(users=10, items=10)
    with pytest.raises(DataError, match=r"^data set 'generated': no interaction is left for training$"):
        MeLU().split(few, seed=0)


def test_on_movielens_about_as_many_users_are_kept_as_in_the_papers_files(movielens):
    from metarec import load_dataset

    split = MeLU().split(load_dataset("movielens", path=movielens / "ml-1m"), seed=0)
    kept = {cell.scenario: len(cell.tasks) for cell in split.cells}
    published = {"warm": 2653, "new-user": 668, "new-item": 2863, "new-both": 723}
    assert {name: pytest.approx(count, rel=0.05) for name, count in published.items()} == kept

"""MetaHIN's protocol reads its split from files."""

import json
from collections import Counter
from dataclasses import replace

import polars as pl
import pytest

from metarec.errors import DataError
from metarec.plugins.protocols.metahin import MetaHIN

FILES = {
    "train": "meta_training",
    "warm": "warm_up",
    "new-user": "user_cold_testing",
    "new-item": "item_cold_testing",
    "new-both": "user_and_item_cold_testing",
}
SCENARIOS = list(FILES)[1:]


def by_user(triples):
    lists = {}
    for user, item, _ in triples:
        lists.setdefault(user, []).append(item)
    return lists


@pytest.fixture(scope="module")
def dataset(make_dataset):
    return make_dataset(users=60, items=120, density=0.5)


@pytest.fixture(scope="module")
def lists(dataset, unfold):
    """The items of each file by user: users 45 to 59 and items 1080 to 1119 are new, every fifth known pair is warm."""
    triples = unfold(dataset, None).everything
    parts = {name: [] for name in FILES}
    for number, triple in enumerate(triples):
        new_user, new_item = int(triple[0][1:]) >= 45, triple[1] >= 1080
        scenario = {(0, 1): "new-item", (1, 0): "new-user", (1, 1): "new-both"}.get((new_user, new_item))
        parts[scenario or ("warm" if number % 5 == 0 else "train")].append(triple)
    return {name: by_user(part) for name, part in parts.items()}


def write(folder, lists):
    for name, content in lists.items():
        (folder / f"{FILES[name]}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, lists):
    return write(tmp_path_factory.mktemp("splits"), lists)


@pytest.fixture(scope="module")
def made(dataset, folder, unfold):
    return unfold(dataset, MetaHIN(path=folder).split(dataset, seed=0))


def test_the_training_set_is_the_training_file(made, lists):
    assert {user: Counter(items) for user, items in by_user(made.train).items()} == {
        user: Counter(items) for user, items in lists["train"].items()
    }
    assert set(made.train) <= set(made.everything)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_users_with_13_to_100_ratings_are_kept_and_10_are_the_query(made, lists, scenario):
    (cell,) = made.cells(scenario)
    kept = {user: items for user, items in lists[scenario].items() if 13 <= len(items) <= 100}
    assert kept and set(cell.query) == set(kept)
    for user, items in kept.items():
        assert len(cell.query[user]) == 10
        assert sorted(item for _, item, _ in cell.query[user] + cell.support[user]) == sorted(items)
        assert set(cell.query[user] + cell.support[user]) <= set(made.everything)


def test_only_history_tells_who_a_user_is_and_adds_its_training_ratings(dataset, made, folder, unfold):
    for cell in made.split.cells:
        assert bool((cell.tasks.support.entities.rows == -1).all())
    with_history = unfold(dataset, MetaHIN(path=folder, history=True).split(dataset, seed=0))
    for scenario in SCENARIOS:
        (plain,), (found,) = made.cells(scenario), with_history.cells(scenario)
        assert found.query == plain.query
        for user, part in found.support.items():
            training = [triple for triple in made.train if triple[0] == user]
            assert sorted(part) == sorted(plain.support[user] + training)
    rows = {cell.scenario: cell.tasks.support.entities.rows for cell in with_history.split.cells}
    assert bool((rows["new-item"] >= 0).all()) and bool((rows["new-user"] == -1).all())


def test_the_seed_draws_the_queries_only(dataset, made, folder, unfold):
    other = unfold(dataset, MetaHIN(path=folder).split(dataset, seed=1))
    assert other.train == made.train
    for scenario in SCENARIOS:
        (one,), (two,) = made.cells(scenario), other.cells(scenario)
        assert one.query != two.query and set(one.query) == set(two.query)


def test_a_film_that_was_not_rated_or_is_named_again_stands_for_its_twin(dataset, tmp_path, unfold):
    """MovieLens has one film as 811 and 860; the files say 811 for both, twice where a user rated both."""
    ids = [{1000: 860, 1001: 811}.get(item, item) for item in dataset.items.ids]
    renamed = replace(dataset, items=replace(dataset.items, ids=pl.Series("item", ids)))
    triples = unfold(renamed, None).everything
    rated = {user: {811, 860} & set(items) for user, items in by_user(triples).items()}
    assert {frozenset(both) for both in rated.values()} == set(
        map(frozenset, [(), (811,), (860,), (811, 860)])
    )
    known = {user: items for user, items in by_user(triples).items() if int(user[1:]) < 45}
    named = {user: [811 if item == 860 else item for item in items] for user, items in known.items()}
    write(tmp_path, {**{name: {} for name in FILES}, "train": named})
    made = unfold(renamed, MetaHIN(path=tmp_path).split(renamed, seed=0))
    assert Counter(made.train) == Counter(triple for triple in triples if int(triple[0][1:]) < 45)


def test_a_pair_that_is_named_again_counts_once(dataset, lists, tmp_path, made, unfold):
    twice = {user: items * 2 for user, items in lists["train"].items()}
    again = unfold(dataset, MetaHIN(path=write(tmp_path, {**lists, "train": twice})).split(dataset, seed=0))
    assert Counter(again.train) == Counter(made.train)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot be read (No such file or directory), expected a file of MetaHIN's split"),
        ("{", "is no JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
        ("[1]", "expected an object that maps user ids to lists of item ids"),
        ('{"u1": 3}', "expected an object that maps user ids to lists of item ids"),
        ('{"u1": [7]}', "user 'u1' rated item '7' there, not in data set 'generated'"),
        ('{"nobody": [1000]}', "user 'nobody' rated item '1000' there, not in data set 'generated'"),
    ],
    ids=["missing", "damaged", "a list", "no lists", "unknown item", "unknown user"],
)
def test_a_wrong_file_is_named(dataset, lists, tmp_path, content, expected):
    file = write(tmp_path, lists) / "item_cold_testing.json"
    file.unlink() if content is None else file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as raised:
        MetaHIN(path=tmp_path).split(dataset, seed=0)
    assert str(raised.value) == f"{file}: {expected}"


def test_implicit_feedback_is_refused(make_dataset, tmp_path):
    with pytest.raises(
        DataError, match=r"^protocol 'metahin': data set 'generated' is implicit, expected ratings$"
    ):
        MetaHIN(path=tmp_path).split(make_dataset(implicit=True), seed=0)


def test_the_released_files_on_movielens(movielens):
    """585,366 training ratings, and the users that the files themselves have with 13 to 100 ratings."""
    from metarec import load_dataset

    folder = movielens / "ml-1m" / "metahin_splits"
    dataset = load_dataset("movielens", path=movielens / "ml-1m")
    split = MetaHIN(path=folder).split(dataset, seed=0)
    assert len(split.train) == 585_366
    pairs = split.train.user.long() * len(split.train.items) + split.train.item
    assert pairs.unique().numel() == len(pairs)
    files = {name: json.loads((folder / f"{file}.json").read_text()) for name, file in FILES.items()}
    assert set(split.train.users.ids.to_list()) == {int(user) for user in files["train"]}
    for cell in split.cells:
        sizes = {int(user): len(items) for user, items in files[cell.scenario].items()}
        kept = {user: size for user, size in sizes.items() if 13 <= size <= 100}
        names = dataset.users.ids.gather(cell.tasks.entity.tolist()).to_list()
        sums = (cell.tasks.support.counts + cell.tasks.query.counts).tolist()
        assert dict(zip(names, sums, strict=True)) == kept
        assert set(cell.tasks.query.counts.tolist()) == {10}
    ratings = json.loads((folder / "user_cold_testing_y.json").read_text())
    cell = next(cell for cell in split.cells if cell.scenario == "new-user")
    totals = cell.tasks.support.sum(cell.tasks.support.rating) + cell.tasks.query.sum(cell.tasks.rating)
    names = dataset.users.ids.gather(cell.tasks.entity.tolist()).to_list()
    assert totals.tolist() == [sum(ratings[str(name)]) for name in names]

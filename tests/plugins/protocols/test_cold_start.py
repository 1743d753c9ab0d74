"""The cold-start protocol's promises, each checked on the ids of what it made."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from metarec.data import RatingScale
from metarec.errors import ConfigError, DataError
from metarec.plugins.protocols.cold_start import ColdStart

SIZES = (0, 1, 3, 5, "all")
NEW = ("new-user", "new-item", "new-both")
SCENARIOS = ("warm", *NEW)
IS_KNOWN = {
    "warm": (True, True),
    "new-user": (False, True),
    "new-item": (True, False),
    "new-both": (False, False),
}
"""Whether the user and the item of a scenario's query pairs are known."""


@pytest.fixture(
    scope="module",
    params=[(False, 0), (False, 1), (True, 0)],
    ids=["explicit", "another seed", "implicit"],
)
def made(request, make_dataset, unfold):
    """A data set on which all scenarios have tasks, split."""
    implicit, seed = request.param
    dataset = make_dataset(users=70, items=60, implicit=implicit, seed=seed)
    return unfold(dataset, ColdStart(support_sizes=SIZES).split(dataset, seed=seed))


def flat(lists):
    return [entry for part in lists.values() for entry in part]


def test_every_scenario_has_a_cell_per_size_and_warm_only_one(made):
    assert made.scenarios == list(SCENARIOS)
    sizes = {s: [cell.support for cell in made.split.cells if cell.scenario == s] for s in SCENARIOS}
    assert sizes == {"warm": [None], **{scenario: [0, 1, 3, 5, None] for scenario in NEW}}
    sides = {scenario: made.cells(scenario)[0].side for scenario in SCENARIOS}
    assert sides == {"warm": "user", "new-user": "user", "new-item": "item", "new-both": "user"}


def test_a_fifth_of_either_side_is_new(made):
    assert len(made.dataset.users) - len(made.known_users) == 14
    assert len(made.dataset.items) - len(made.known_items) == 12


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_query_pairs_are_of_the_scenario(made, scenario):
    for cell in made.cells(scenario):
        known = {(user in made.known_users, item in made.known_items) for user, item, _ in flat(cell.query)}
        assert known == {IS_KNOWN[scenario]}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_supports_are_by_known_partners(made, scenario):
    for cell in made.cells(scenario):
        known = made.known_items if cell.side == "user" else made.known_users
        partner = 1 if cell.side == "user" else 0
        assert {triple[partner] for triple in flat(cell.support)} <= known


def test_all_that_is_used_is_in_the_data_with_its_rating(made):
    everything = set(made.everything)
    assert len(everything) == len(made.everything)
    assert set(made.train) <= everything
    for scenario in SCENARIOS:
        for cell in made.cells(scenario):
            assert set(flat(cell.support)) | set(flat(cell.query)) <= everything


def test_training_queries_and_newcomers_supports_are_disjoint(made):
    parts = {"train": made.train}
    for scenario in SCENARIOS:
        largest = made.cells(scenario)[-1]
        parts[f"{scenario} query"] = flat(largest.query)
        if scenario in ("new-user", "new-item"):
            parts[f"{scenario} support"] = flat(largest.support)
    counts = Counter(triple for part in parts.values() for triple in part)
    assert set(counts.values()) == {1}


@pytest.mark.parametrize("scenario", NEW)
def test_queries_are_the_same_for_all_sizes_and_supports_are_beginnings(made, scenario):
    cells = made.cells(scenario)
    *_, largest = cells
    for size, cell in zip(SIZES, cells, strict=True):
        assert cell.query == largest.query
        expected = {name: part if size == "all" else part[:size] for name, part in largest.support.items()}
        assert cell.support == expected


@pytest.mark.parametrize("scenario", NEW)
def test_supports_are_in_random_order(made, scenario):
    """Not in that of the data, which may be by time: of neighbours, either is first half the time."""
    place = {triple: number for number, triple in enumerate(made.everything)}
    supports = made.cells(scenario)[-1].support.values()
    rises = [place[a] < place[b] for part in supports for a, b in pairwise(part)]
    assert len(rises) > 30 and sum(rises) / len(rises) == pytest.approx(0.5, abs=2 / len(rises) ** 0.5)


@pytest.mark.parametrize(("scenario", "side"), [("new-user", 0), ("new-item", 1)])
def test_half_of_a_newcomers_ratings_of_known_partners_is_its_query(made, scenario, side):
    """Every newcomer with enough ratings is a task, and nothing of these is lost."""
    known = (made.known_users, made.known_items)
    ratings = {}
    for triple in made.everything:
        if triple[side] not in known[side] and triple[1 - side] in known[1 - side]:
            ratings.setdefault(triple[side], []).append(triple)
    expected = {
        name: part for name, part in ratings.items() if len(part) // 2 >= 3 and (len(part) + 1) // 2 >= 5
    }
    cell = made.cells(scenario)[-1]
    assert set(cell.query) == set(expected)
    for name, part in expected.items():
        assert sorted(cell.query[name] + cell.support[name]) == sorted(part)
        assert len(cell.query[name]) == len(part) // 2


def test_new_both_adapts_on_known_items_and_asks_for_all_new_ones(made):
    new_user, new_both = made.cells("new-user")[-1], made.cells("new-both")[-1]
    asked = {}
    for triple in made.everything:
        if triple[0] not in made.known_users and triple[1] not in made.known_items:
            asked.setdefault(triple[0], []).append(triple)
    assert set(new_both.query) <= set(asked)
    for user, part in new_both.query.items():
        assert sorted(part) == sorted(asked[user]) and len(part) >= 3 and len(new_both.support[user]) >= 5
        assert user not in new_user.support or new_both.support[user] == new_user.support[user]


def test_a_known_users_support_is_its_training_ratings(made):
    (cell,) = made.cells("warm")
    for user, part in cell.support.items():
        assert sorted(part) == sorted(triple for triple in made.train if triple[0] == user)
        among_known = [t for t in made.everything if t[0] == user and t[1] in made.known_items]
        assert len(cell.query[user]) <= len(among_known) // 5
        assert sorted(part + cell.query[user]) == sorted(among_known)


def test_all_ratings_among_the_known_are_for_training_or_held_out(made):
    among_known = [t for t in made.everything if t[0] in made.known_users and t[1] in made.known_items]
    held_out = Counter(t[0] for t in set(among_known) - set(made.train))
    count = Counter(t[0] for t in among_known)
    assert set(made.train) <= set(among_known)
    assert all(held_out[user] <= count[user] // 5 for user in count)
    assert sum(held_out.values()) > 0.9 * sum(count[user] // 5 for user in count)


def test_lists_over_the_catalogue_name_the_partners_of_the_scenario_but_the_largest_support(made):
    new_items = set(made.dataset.items.ids.to_list()) - made.known_items
    named = {"new-item": made.known_users, "new-both": new_items}
    for scenario in SCENARIOS:
        *_, largest = cells = made.cells(scenario)
        partner = 1 if largest.side == "user" else 0
        support = {name: [triple[partner] for triple in part] for name, part in largest.support.items()}
        for cell in cells:
            assert cell.candidates == named.get(scenario, made.known_items)
            assert cell.excluded == support
            assert {triple[partner] for triple in flat(cell.query)} <= cell.candidates


def test_implicit_feedback_is_ranked_in_the_catalogue_only(made):
    lists = ("catalogue",) if made.dataset.scale.implicit else ("query", "catalogue")
    assert {cell.lists for cell in made.split.cells} == {lists}


def test_newcomers_are_new_to_algorithms_and_the_known_have_their_training_row(made):
    for cell in made.split.cells:
        support, query = cell.tasks.support, cell.tasks.query
        for side, rows, entities in (
            (support.side, support.entities.rows, cell.tasks.entity),
            ("item" if support.side == "user" else "user", query.partners.rows, None),
        ):
            names = made.dataset.entities(side).ids
            names = names.to_list() if entities is None else names.gather(entities.tolist()).to_list()
            known = made.split.train.entities(side).ids.to_list()
            expected = [known.index(name) if name in known else -1 for name in names]
            assert rows.tolist() == expected


def test_one_seed_gives_one_split_and_another_seed_another(make_dataset, unfold):
    dataset = make_dataset(users=70, items=60)
    one, same, other = (unfold(dataset, ColdStart().split(dataset, seed=seed)) for seed in (3, 3, 4))
    assert one.train == same.train
    for scenario in SCENARIOS:
        assert one.cells(scenario) == same.cells(scenario)
    assert one.known_users != other.known_users and one.known_items != other.known_items
    shared = one.known_users & other.known_users
    assert {t for t in one.train if t[0] in shared} != {t for t in other.train if t[0] in shared}


def test_shares_and_least_sizes_are_options(make_dataset, unfold):
    dataset = make_dataset(users=70, items=60)
    protocol = ColdStart(new_users=0.5, new_items=0.0, query=0.25, warm_query=0.0, min_support=0, min_query=8)
    made = unfold(dataset, protocol.split(dataset, seed=0))
    assert made.scenarios == ["new-user"]
    assert len(made.known_users) == 35 and made.known_items == set(dataset.items.ids.to_list())
    assert set(made.train) == {t for t in made.everything if t[0] in made.known_users}
    cell = made.cells("new-user")[-1]
    ratings = Counter(user for user, _, _ in made.everything)
    assert {user: len(part) for user, part in cell.query.items()} == {
        user: count // 4
        for user, count in ratings.items()
        if user not in made.known_users and count // 4 >= 8
    }
    assert 8 in {len(part) for part in cell.query.values()}


def test_an_entity_without_a_training_rating_is_in_no_query(make_dataset, unfold):
    """With few ratings some entities that were not drawn as new have none left for training."""
    dataset = make_dataset(users=60, items=300, density=0.02)
    protocol = ColdStart(min_support=0, min_query=1)
    made = unfold(dataset, protocol.split(dataset, seed=0))
    drawn = 60
    unknown = set(dataset.items.ids.to_list()) - made.known_items
    assert len(unknown) > drawn
    asked = {triple[1] for cell in made.cells("new-both") for triple in flat(cell.query)}
    asked |= set().union(*(cell.query for cell in made.cells("new-item")))
    assert made.cells("new-both")[0].candidates < unknown
    assert len(made.cells("new-both")[0].candidates) == drawn
    assert asked <= made.cells("new-both")[0].candidates


def test_one_rating_of_every_item_stays_for_training(make_dataset, unfold):
    dataset = make_dataset(users=60, items=60, density=0.1)
    protocol = ColdStart(new_users=0.0, new_items=0.0, warm_query=0.9, min_support=0, min_query=1)
    made = unfold(dataset, protocol.split(dataset, seed=0))
    assert made.known_items == {item for _, item, _ in made.everything}


@pytest.mark.parametrize(
    ("options", "error", "expected"),
    [
        (
            {"support_sizes": (0, -1)},
            ConfigError,
            "protocol 'cold-start': support_sizes holds -1, expected 0 or more",
        ),
        (
            {"min_support": 1000},
            DataError,
            "data set 'generated': no task has 1000 ratings for its support and 3 for its query (min_support and "
            "min_query of protocol 'cold-start')",
        ),
    ],
)
def test_what_cannot_be_split_is_said_in_one_line(make_dataset, options, error, expected):
    with pytest.raises(error) as raised:
        ColdStart(**options).split(make_dataset(), seed=0)
    assert str(raised.value) == expected


def test_no_interaction_at_all_is_an_error(make_dataset):
    empty = make_dataset().take(torch.zeros(0, dtype=torch.int64))
    with pytest.raises(DataError, match=r"^data set 'generated': no interaction is left for training$"):
        ColdStart().split(replace(empty, scale=RatingScale(1, 5, 4)), seed=0)

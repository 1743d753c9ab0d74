"""What protocols share: partitions, random places and draws, support curves."""

from collections import Counter, defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metarec.errors import DataError
from metarec.features import encode, fit_encoders
from metarec.tasks import Partition, draw_queries, random_places, support_curve

owners = st.lists(st.integers(0, 5), max_size=30)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ids(dataset, interactions):
    """What the interactions say, in the source's words, so that renumbering cannot hide a mistake."""
    users, items = dataset.users.ids[dataset.user.numpy()], dataset.items.ids[dataset.item.numpy()]
    rows = zip(users, items, dataset.rating.tolist(), dataset.time.tolist(), strict=True)
    rows = list(rows)
    return [rows[place] for place in interactions]


@pytest.fixture
def dataset(make_dataset):
    return make_dataset(users=12, items=9)


@pytest.fixture
def partition(dataset):
    """Users 0 to 7 and items 0 to 5 are known, but for two interactions that are not for training."""
    return Partition.of(dataset, training_of(dataset))


def training_of(dataset):
    return ((dataset.user < 8) & (dataset.item < 6)).nonzero().flatten()[2:]


def test_the_training_set_holds_the_training_interactions_and_their_entities_only(dataset, partition):
    training, train = training_of(dataset), partition.train
    assert Counter(ids(train, range(len(train)))) == Counter(ids(dataset, training.tolist()))
    assert train.users.ids.to_list() == [f"u{row}" for row in sorted(set(dataset.user[training].tolist()))]
    assert train.items.ids.to_list() == [1000 + row for row in sorted(set(dataset.item[training].tolist()))]


def test_rows_point_into_the_training_set(dataset, partition):
    for side in ("user", "item"):
        whole, known = dataset.entities(side).ids, partition.train.entities(side).ids
        rows = partition.rows(side).tolist()
        assert [known[row] if row >= 0 else None for row in rows] == [
            called if called in known.to_list() else None for called in whole
        ]
        is_known = [whole[row] in known.to_list() for row in dataset.rows(side).tolist()]
        assert partition.known(side).tolist() == is_known


def test_features_of_all_are_by_encoders_fitted_on_the_known(dataset, partition):
    encoders = fit_encoders(partition.train)
    assert encoders.table() == partition.encoders.table()
    for side in ("user", "item"):
        expected = encode(dataset, encoders).entities(side).features.dense()
        assert torch.equal(partition.dataset.entities(side).features.dense(), expected)
        known = partition.rows(side) >= 0
        assert torch.equal(partition.train.entities(side).features.dense(), expected[known])


@pytest.mark.parametrize("side", ["user", "item"])
@pytest.mark.parametrize("history", [True, False])
def test_tasks_are_those_made_one_by_one(dataset, partition, side, history):
    order = torch.randperm(len(dataset), generator=generator())
    support, query = order[: len(order) // 2], order[len(order) // 2 :]
    query = query[dataset.rows(side)[query] % 3 > 0]  # some entities have no query
    candidates = torch.arange(len(dataset.entities("item" if side == "user" else "user"))) % 2 == 0
    tasks = partition.tasks(side, support=support, query=query, candidates=candidates, history=history)

    lists = defaultdict(lambda: ([], []))
    for interactions, which in ((support, 0), (query, 1)):
        for interaction in interactions.tolist():
            lists[int(dataset.rows(side)[interaction])][which].append(interaction)
    entities = sorted(entity for entity, (_, its_query) in lists.items() if its_query)
    assert tasks.entity.tolist() == entities
    partner = (dataset.item if side == "user" else dataset.user).long()
    supports = [lists[entity][0] for entity in entities]
    queries = [lists[entity][1] for entity in entities]
    for found, rating, expected in (
        (tasks.support, tasks.support.rating, supports),
        (tasks.query, tasks.rating, queries),
    ):
        assert found.counts.tolist() == [len(part) for part in expected]
        assert found.partner.tolist() == [int(partner[i]) for part in expected for i in part]
        assert rating.tolist() == [float(dataset.rating[i]) for part in expected for i in part]
    rows = partition.rows(side)[entities]
    assert tasks.support.entities.rows.tolist() == (rows if history else torch.full_like(rows, -1)).tolist()
    features = partition.dataset.entities(side).features.dense()
    assert torch.equal(tasks.support.entities.features.dense(), features[entities])
    other = "item" if side == "user" else "user"
    assert torch.equal(tasks.query.partners.rows, partition.rows(other))
    assert torch.equal(tasks.support.partners.rows, partition.rows(other))
    assert tasks.candidates.tolist() == candidates.nonzero().flatten().tolist()


def test_nothing_to_train_on_is_an_error(dataset):
    with pytest.raises(DataError, match=r"^data set 'generated': no interaction is left for training$"):
        Partition.of(dataset, torch.zeros(0, dtype=torch.int64))


@given(owners, st.integers(0, 3))
def test_places_number_each_owners_entries(owner, seed):
    places = random_places(torch.tensor(owner, dtype=torch.int64), generator(seed)).tolist()
    for one in set(owner):
        its = [place for place, whose in zip(places, owner, strict=True) if whose == one]
        assert sorted(its) == list(range(len(its)))


def test_every_order_is_as_likely():
    """Three entries of each owner: all six orders, 1/6 of the time each."""
    count = 6000
    places = random_places(torch.arange(3 * count) % count, generator()).reshape(3, count)
    orders = Counter(map(tuple, places.T.tolist()))
    deviation = (count * 1 / 6 * 5 / 6) ** 0.5
    assert len(orders) == 6 and all(abs(n - count / 6) < 4 * deviation for n in orders.values())


@given(st.lists(st.integers(0, 5), min_size=20, max_size=40), st.integers(1, 3))
def test_draws_keep_owners_by_size_and_split_their_entries(owner, count):
    rest, queries = draw_queries(torch.tensor(owner, dtype=torch.int64), count, generator(), least=4, most=6)
    sizes = Counter(owner)
    for one, size in sizes.items():
        of_one = torch.tensor([whose == one for whose in owner])
        drawn, left = int((queries & of_one).sum()), int((rest & of_one).sum())
        assert (drawn, left) == ((count, size - count) if 4 <= size <= 6 else (0, 0))
    assert not (rest & queries).any()


def test_draws_differ_by_seed_only():
    owner = torch.arange(50) % 5
    one, same, other = (draw_queries(owner, 4, generator(seed), least=1, most=99)[1] for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_curve_has_the_same_queries_and_growing_supports(dataset, partition):
    order = torch.arange(len(dataset))
    everything = torch.ones(len(dataset.items), dtype=torch.bool)
    tasks = partition.tasks("user", support=order[::2], query=order[1::2], candidates=everything)
    cells = support_curve("new-user", tasks, (0, 2, "all"), ("query", "catalogue"))
    assert [cell.support for cell in cells] == [0, 2, None]
    assert {(cell.scenario, cell.lists) for cell in cells} == {("new-user", ("query", "catalogue"))}
    for cell in cells:
        assert torch.equal(cell.tasks.query.partner, tasks.query.partner)
        assert torch.equal(cell.tasks.excluded.partner, tasks.support.partner)
        assert torch.equal(cell.tasks.excluded.offsets, tasks.support.offsets)
    assert cells[0].tasks.support.partner.numel() == 0
    assert torch.equal(cells[1].tasks.support.partner, tasks.support.first(2).partner)
    assert cells[2].tasks.support is tasks.support

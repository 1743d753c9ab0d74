"""Ragged lists, supports and queries against Python lists of lists."""

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metarec.data import Features
from metarec.tasks import EntityRows, Query, Ragged, Support, Tasks

PARTNERS = 6
lists = st.lists(st.lists(st.tuples(st.integers(0, PARTNERS - 1), st.integers(-8, 8))), max_size=7)


def flat(nested, dtype=torch.int64):
    return torch.tensor([value for part in nested for value in part], dtype=dtype)


def offsets(nested):
    return torch.tensor([0, *(len(part) for part in nested)]).cumsum(0)


def first(nested):
    return [[partner for partner, _ in part] for part in nested]


def second(nested):
    return [[float(value) for _, value in part] for part in nested]


def entity_rows(count, shift=0):
    """Entities of which every second is new, with one feature that tells them apart."""
    row = torch.arange(count)
    features = Features(torch.arange(count + 1), torch.zeros(count, dtype=torch.int64), row + shift + 0.5, 1)
    return EntityRows(torch.where(row % 2 == 0, row, -1), features)


def made_support(nested):
    return Support(
        offsets=offsets(nested),
        partner=flat(first(nested)),
        side="user",
        entities=entity_rows(len(nested)),
        partners=entity_rows(PARTNERS, shift=100),
        rating=flat(second(nested), torch.float32),
    )


def partners_of(ragged):
    return [part.tolist() for part in ragged.partner.split(ragged.counts.tolist())] if len(ragged) else []


def ratings_of(ragged, rating):
    return [part.tolist() for part in rating.split(ragged.counts.tolist())] if len(ragged) else []


def chosen(nested, data):
    """Any of the lists, in any order, repeats allowed."""
    index = data.draw(st.lists(st.integers(0, len(nested) - 1))) if nested else []
    return torch.tensor(index, dtype=torch.int64), [nested[place] for place in index]


@given(lists)
def test_counts_and_owners(nested):
    ragged = Ragged(offsets(nested), flat(first(nested)))
    assert len(ragged) == len(nested)
    assert ragged.counts.tolist() == [len(part) for part in nested]
    assert ragged.owner.tolist() == [task for task, part in enumerate(nested) for _ in part]
    assert partners_of(Ragged.empty(len(nested))) == [[]] * len(nested)


@given(lists)
def test_sum_mean_and_median(nested):
    ragged, parts = Ragged(offsets(nested), flat(first(nested))), second(nested)
    values = flat(parts, torch.float64)
    assert ragged.sum(values).tolist() == [sum(part) for part in parts]
    expected = {
        "mean": [statistics.fmean(part) if part else torch.nan for part in parts],
        "median": [statistics.median(part) if part else torch.nan for part in parts],
    }
    for name, value in expected.items():
        found = getattr(ragged, name)(values)
        assert torch.allclose(found, torch.tensor(value, dtype=torch.float64), equal_nan=True)


@given(st.lists(st.integers(0, 4)), st.integers(5, 7))
def test_grouping_keeps_the_order_within_each_list(owner, count):
    found = Ragged.grouped(torch.tensor(owner, dtype=torch.int64), count)
    assert partners_of(found) == [
        [at for at, its in enumerate(owner) if its == task] for task in range(count)
    ]


@given(lists, st.data())
def test_select(nested, data):
    index, expected = chosen(nested, data)
    ragged = Ragged(offsets(nested), flat(first(nested)))
    assert partners_of(ragged.select(index)) == first(expected)
    support = made_support(nested)
    found = support.select(index)
    assert partners_of(found) == first(expected) and ratings_of(found, found.rating) == second(expected)
    assert found.entities.rows.tolist() == support.entities.rows[index].tolist()
    assert found.entities.features.values.tolist() == (index + 0.5).tolist()
    assert found.partners is support.partners and found.side == "user"


@given(lists, st.integers(0, 4))
def test_first(nested, size):
    found = made_support(nested).first(size)
    expected = [part[:size] for part in nested]
    assert partners_of(found) == first(expected) and ratings_of(found, found.rating) == second(expected)
    assert torch.equal(found.offsets, offsets(expected)) and len(found.entities) == len(nested)


@given(lists, lists, st.data())
def test_tasks_are_selected_with_all_that_belongs_to_them(supports, queries, data):
    count = min(len(supports), len(queries))
    supports, queries = supports[:count], queries[:count]
    partners = entity_rows(PARTNERS, shift=100)
    tasks = Tasks(
        support=made_support(supports),
        query=Query(offsets(queries), flat(first(queries)), partners),
        rating=flat(second(queries), torch.float32),
        entity=torch.arange(count) + 50,
        candidates=torch.arange(PARTNERS),
        excluded=Ragged(offsets(queries), flat(first(queries))),
    )
    index, expected = chosen(queries, data)
    found = tasks.select(index)
    assert len(found) == len(index) and found.entity.tolist() == (index + 50).tolist()
    assert partners_of(found.query) == partners_of(found.excluded) == first(expected)
    assert ratings_of(found.query, found.rating) == second(expected)
    assert partners_of(found.support) == first([supports[place] for place in index.tolist()])
    assert found.candidates is tasks.candidates


@given(st.integers(0, 4), st.lists(st.integers(0, PARTNERS - 1), unique=True))
def test_a_full_query_asks_every_task_for_every_candidate(count, candidates):
    query = Query.full(count, entity_rows(PARTNERS), torch.tensor(candidates, dtype=torch.int64))
    assert partners_of(query) == [candidates] * count


def test_moving_changes_floats_only():
    nested = [[(1, 2), (0, 3)], []]
    support, query = made_support(nested), Query(offsets(nested), flat(first(nested)), entity_rows(PARTNERS))
    for moved, before in ((support.to(dtype=torch.float64), support), (query.to(dtype=torch.float64), query)):
        assert torch.equal(moved.partner, before.partner) and torch.equal(moved.offsets, before.offsets)
        assert moved.partners.features.values.dtype == torch.float64
        assert moved.partners.rows.dtype == torch.int64
    assert support.to(dtype=torch.float64).rating.tolist() == [2.0, 3.0]
    assert support.to(dtype=torch.float64).entities.features.values.dtype == torch.float64
    assert support.to("meta").rating.device.type == support.to("meta").entities.rows.device.type == "meta"


def test_a_support_has_no_place_for_a_query():
    """What `adapt` is given can hold no query: its fields are the support's ratings and who the entities are."""
    fields = set(Support.__dataclass_fields__)
    assert fields == {"offsets", "partner", "side", "entities", "partners", "rating"}
    assert set(EntityRows.__dataclass_fields__) == {"rows", "features"}
    with pytest.raises(TypeError, match="query"):
        Support(**dict.fromkeys(fields), query=None)

"""Training tasks against the data set that they are drawn from."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metarec.data import partner_side
from metarec.tasks import Sampling, Tasks, TaskSampler
from metarec.testing.world import small_world


def sampler(*, implicit: bool = False, sides=("user", "item"), **options) -> TaskSampler:
    train = small_world(implicit=implicit).split.train
    return TaskSampler(train, sides, Sampling(**options), device=torch.device("cpu"), dtype=torch.float32)


def epoch(drawn: TaskSampler, seed: int = 0) -> list[Tasks]:
    return list(drawn.epoch(torch.Generator().manual_seed(seed)))


def rated(tasks: Tasks, part: str) -> list[tuple[int, int, float]]:
    """(entity, partner, rating) of each entry of the support or query, partners as rows of the training set."""
    lists = getattr(tasks, part)
    rating = tasks.support.rating if part == "support" else tasks.rating
    count = len(tasks.candidates)
    entity = tasks.entity[lists.owner]
    return list(zip(entity.tolist(), (lists.partner % count).tolist(), rating.tolist(), strict=True))


def training_ratings(side: str) -> set[tuple[int, int, float]]:
    train = small_world().split.train
    pairs = (train.user, train.item) if side == "user" else (train.item, train.user)
    return set(zip(pairs[0].tolist(), pairs[1].tolist(), train.rating.tolist(), strict=True))


def test_an_epoch_has_each_entity_once_and_only_its_ratings():
    batches = epoch(sampler(tasks=7))
    for side, count in (("user", 48), ("item", 32)):
        mine = [tasks for tasks in batches if tasks.support.side == side]
        assert sorted(torch.cat([tasks.entity for tasks in mine]).tolist()) == list(range(count))
        for tasks in mine:
            support, query = rated(tasks, "support"), rated(tasks, "query")
            assert {*support, *query} <= training_ratings(side)
            assert len({*support, *query}) == len(support) + len(query), "no rating is in both, or twice"
    assert len(batches) == len(sampler(tasks=7)) == 7 + 5


def test_sizes_are_within_bounds_and_every_query_has_a_rating():
    batches = epoch(sampler(max_support=4, max_query=3))
    supports = torch.cat([tasks.support.counts for tasks in batches])
    queries = torch.cat([tasks.query.counts for tasks in batches])
    assert supports.max() == 4 and supports.min() == 0
    assert queries.max() == 3 and queries.min() >= 1


def test_support_sizes_are_log_uniform():
    drawn = sampler(sides=("user",), tasks=48, max_support=3)
    sizes = Counter(
        size for seed in range(200) for t in epoch(drawn, seed) for size in t.support.counts.tolist()
    )
    total = sum(sizes.values())
    expected = [math.log((size + 2) / (size + 1), 5) for size in range(4)]
    assert [sizes[size] / total for size in range(4)] == pytest.approx(expected, abs=0.02)


def test_entities_are_new_and_partners_in_the_shares_asked_for():
    drawn = sampler(sides=("user",), tasks=48, new_partners=0.5)
    kinds: Counter[tuple[bool, bool]] = Counter()
    for seed in range(50):
        for tasks in epoch(drawn, seed):
            assert (tasks.support.entities.rows == -1).all()
            known = tasks.query.partners.rows >= 0
            for task in range(len(tasks)):
                begin, end = tasks.query.offsets[task : task + 2].tolist()
                asked = known[tasks.query.partner[begin:end]]
                begin, end = tasks.support.offsets[task : task + 2].tolist()
                held = known[tasks.support.partner[begin:end]]
                assert len(asked.unique()) == 1 and len(held.unique()) <= 1, "all of a task's are alike"
                if len(held):
                    kinds[bool(held[0]), bool(asked[0])] += 1
    total = sum(kinds.values())
    assert kinds[False, True] == 0
    assert kinds[True, True] / total == pytest.approx(0.5, abs=0.04)
    assert kinds[False, False] / total == pytest.approx(0.25, abs=0.04)


def test_a_partner_taken_for_new_keeps_its_attributes():
    (tasks,) = epoch(sampler(sides=("user",), tasks=48))
    count = len(tasks.candidates)
    features = tasks.query.partners.features.dense()
    assert torch.equal(features[:count], features[count:])
    assert torch.equal(tasks.query.partners.rows[:count], torch.arange(count))


@pytest.mark.parametrize("implicit", [False, True])
@given(
    share=st.floats(0.0, 0.5), seed=st.integers(0, 1000), sides=st.sampled_from([("user",), ("user", "item")])
)
@settings(max_examples=15, deadline=None)
def test_newcomers_are_in_no_epoch_in_either_role(implicit: bool, share: float, seed: int, sides):
    rest, held_out = sampler(implicit=implicit, sides=sides).hold_out(
        share, torch.Generator().manual_seed(seed)
    )
    counts = {"user": 48, "item": 32}
    seen = {side: torch.zeros(count, dtype=torch.bool) for side, count in counts.items()}
    for tasks in epoch(rest, seed):
        side = tasks.support.side
        seen[side][tasks.entity] = True
        for lists in (tasks.support, tasks.query):
            seen[partner_side(side)][lists.partner % len(tasks.candidates)] = True
    assert all(seen[side].sum() <= count - round(share * count) for side, count in counts.items())
    for tasks in held_out:
        known = tasks.query.partners.rows
        assert (tasks.support.entities.rows == -1).all()
        for lists in (tasks.support, tasks.query):
            partner = lists.partner % len(tasks.candidates)
            was_seen = seen[partner_side(tasks.support.side)][partner]
            if (known == -1).all():
                assert not was_seen.any(), "new partners are in no epoch"
            else:
                assert not seen[tasks.support.side][tasks.entity].any(), "entities are in no epoch"
                assert (known[lists.partner] >= 0).all()


def test_newcomers_have_all_their_ratings_in_tasks_of_both_kinds():
    drawn = sampler(tasks=64, sides=("user",), max_support=100)
    _, held_out = drawn.hold_out(0.25, torch.Generator().manual_seed(1))
    new_users = {
        user
        for tasks in held_out
        if (tasks.support.partners.rows >= 0).any()
        for user in tasks.entity.tolist()
    }
    ratings = [rated(tasks, part) for tasks in held_out for part in ("support", "query")]
    new_items = {
        item
        for tasks in held_out
        if (tasks.support.partners.rows == -1).all()
        for part in ("support", "query")
        for _, item, _ in rated(tasks, part)
    }
    assert (len(new_users), len(new_items)) == (48 // 4, 32 // 4)
    found = Counter(rating for part in ratings for rating in part)
    assert max(found.values()) == 1
    of_new = {
        rating for rating in training_ratings("user") if rating[0] in new_users or rating[1] in new_items
    }
    counts = Counter(user for user, item, _ in of_new if item in new_items)
    alone = {user for user, count in counts.items() if count == 1}
    assert of_new - set(found) == {r for r in of_new if r[0] in alone and r[1] in new_items}
    assert set(found) <= of_new


def test_implicit_queries_have_partners_that_were_not_chosen():
    for tasks in epoch(sampler(implicit=True, negatives=3)):
        assert (tasks.support.rating == 1).all()
        assert tasks.rating.sum() * 4 == tasks.rating.numel()
        assert (tasks.query.counts % 4 == 0).all()


def test_noise_is_added_to_supports_only():
    plain, noisy = epoch(sampler(sides=("user",))), epoch(sampler(sides=("user",), rating_noise=0.5))
    difference = torch.cat(
        [b.support.rating - a.support.rating for a, b in zip(plain[:1], noisy[:1], strict=True)]
    )
    assert difference.std() == pytest.approx(0.5, rel=0.2)
    assert torch.equal(plain[0].rating, noisy[0].rating)


def test_a_seed_gives_the_same_tasks():
    first, again, other = (epoch(sampler(), seed) for seed in (3, 3, 4))
    for one, same in zip(first, again, strict=True):
        assert torch.equal(one.entity, same.entity) and torch.equal(one.rating, same.rating)
    assert not torch.equal(torch.cat([t.rating for t in first]), torch.cat([t.rating for t in other]))


def test_attributes_are_left_out_whole_and_as_often_as_asked():
    (plain,), (some,) = (
        epoch(sampler(sides=("user",), tasks=48, **options)) for options in ({}, {"attribute_dropout": 0.3})
    )
    shares = []
    for one, other in ((t(plain), t(some)) for t in (_entities, _partners)):
        blocks = one.blocks
        assert blocks
        for block in blocks:
            before, after = (f.dense()[:, block.start : block.stop] for f in (one, other))
            left_out = (after == 0).all(1)
            assert torch.equal(after[~left_out], before[~left_out])
            shares.append(float(left_out.double().mean()))
    assert sum(shares) / len(shares) == pytest.approx(0.3, abs=0.1)


def _entities(tasks: Tasks):
    return tasks.support.entities.features


def _partners(tasks: Tasks):
    assert tasks.support.partners is tasks.query.partners
    return tasks.query.partners.features


def test_newcomers_are_held_out_as_they_are():
    """Nothing is added to, mixed into or left out of what validation is done on."""
    held_out = [
        sampler(**options).hold_out(0.3, torch.Generator().manual_seed(1))[1]
        for options in (
            {},
            {"rating_noise": 1.0, "attribute_dropout": 0.5, "mixed": 1.0, "new_partners": 1.0},
        )
    ]
    for one, other in zip(*held_out, strict=True):
        assert torch.equal(one.rating, other.rating)
        assert torch.equal(one.support.rating, other.support.rating)
        assert torch.equal(one.query.partners.features.values, other.query.partners.features.values)
        assert torch.equal(one.query.partner, other.query.partner)

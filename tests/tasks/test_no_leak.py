"""Nothing of a query, and nothing of a new entity but its attributes, reaches `fit`; and no query reaches `adapt`."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, is_dataclass, replace

import polars as pl
import pytest
import torch
from torch import Tensor

from metarec.data import Dataset, Features
from metarec.learning import Run
from metarec.pluginmanager import plugin_manager
from metarec.tasks import Protocol, Split

ALGORITHMS = plugin_manager().algorithms
FEEDBACK = [(name, feedback) for name in ALGORITHMS for feedback in ALGORITHMS[name].feedback]


def same(one: object, other: object) -> bool:
    """Whether two values are alike bit for bit, NaN being like NaN."""
    if isinstance(one, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and torch.equal(bits(one), bits(other))
    if isinstance(one, pl.DataFrame | pl.Series):
        return one.equals(other)
    if is_dataclass(one):
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return type(one) is type(other) and (one == other or one != one)


def bits(value: Tensor) -> Tensor:
    return (
        value.view({4: torch.int32, 8: torch.int64}[value.element_size()])
        if value.is_floating_point()
        else value
    )


@dataclass(frozen=True)
class Case:
    """A protocol, a data set that suits it, and its split."""

    protocol: Protocol
    dataset: Dataset
    split: Split

    def again(self, dataset: Dataset) -> Split:
        return self.protocol.split(dataset, seed=0)

    @property
    def place(self) -> dict[tuple[int, int], int]:
        """The interaction of each pair of rows."""
        pairs = zip(self.dataset.user.tolist(), self.dataset.item.tolist(), strict=True)
        return {pair: interaction for interaction, pair in enumerate(pairs)}

    def mask(self, which: str) -> Tensor:
        """bool [n]: the interactions of all "query" or "support" lists."""
        place, chosen = self.place, torch.zeros(len(self.dataset), dtype=torch.bool)
        for cell in self.split.cells:
            ragged = getattr(cell.tasks, which)
            entity, partner = cell.tasks.entity[ragged.owner].tolist(), ragged.partner.tolist()
            of_users = cell.tasks.support.side == "user"
            for one, other in zip(entity, partner, strict=True):
                chosen[place[(one, other) if of_users else (other, one)]] = True
        return chosen

    @property
    def of_new(self) -> Tensor:
        """bool [n]: the interactions of entities that are not in the training set."""
        users, items = self.split.train.users.ids.implode(), self.split.train.items.ids.implode()
        new_user = ~self.dataset.users.ids.is_in(users).to_torch()
        new_item = ~self.dataset.items.ids.is_in(items).to_torch()
        return new_user[self.dataset.user.long()] | new_item[self.dataset.item.long()]


@pytest.fixture(scope="module", params=["cold-start", "cold-start implicit", "melu", "metahin"])
def case(request, make_dataset, tmp_path_factory) -> Case:
    name, _, implicit = request.param.partition(" ")
    dataset = make_dataset(users=80, items=120, density=0.5, implicit=bool(implicit))
    options = {}
    if name == "metahin":
        options["path"] = folder = tmp_path_factory.mktemp("split")
        files = ("meta_training", "item_cold_testing", "user_cold_testing", "user_and_item_cold_testing")
        parts = {file: {} for file in (*files, "warm_up")}
        users = dataset.users.ids.gather(dataset.user.tolist()).to_list()
        items = dataset.items.ids.gather(dataset.item.tolist()).to_list()
        for number, (user, item) in enumerate(zip(users, items, strict=True)):
            which = files[2 * (int(user[1:]) >= 60) + (item >= 1080)]
            file = "warm_up" if which == "meta_training" and number % 3 == 0 else which
            parts[file].setdefault(user, []).append(item)
        for file, content in parts.items():
            (folder / f"{file}.json").write_text(json.dumps(content))
    protocol = plugin_manager().protocols.create(name, **options)
    return Case(protocol, dataset, protocol.split(dataset, seed=0))


def with_ratings(dataset: Dataset, where: Tensor, rating: Tensor | float) -> Dataset:
    changed = dataset.rating.clone()
    changed[where] = rating if isinstance(rating, float) else rating[where]
    return replace(dataset, rating=changed)


def test_the_case_has_every_scenario_and_no_query_is_a_support(case):
    assert {cell.scenario for cell in case.split.cells} == {"warm", "new-user", "new-item", "new-both"}
    query, support = case.mask("query"), case.mask("support")
    assert query.sum() > 500 and support.sum() > 500
    assert not (query & support).any()


def test_ratings_of_queries_and_of_new_entities_do_not_reach_the_training_set(case):
    """Times too: both are replaced by other values, in the raw data."""
    hidden = case.mask("query") | case.of_new
    assert 0.3 < hidden.double().mean() < 0.9
    generator = torch.Generator().manual_seed(5)
    noise = 100 + torch.rand(len(case.dataset), generator=generator)
    corrupted = with_ratings(case.dataset, hidden, noise)
    time = torch.where(hidden, -case.dataset.time, case.dataset.time)
    split = case.again(replace(corrupted, time=time))
    assert same(split.train, case.split.train)
    assert split.encoders.table() == case.split.encoders.table()


def test_tasks_change_by_those_ratings_only(case):
    """`adapt` gets the same input but for the ratings in the supports; the evaluator gets the new ones."""
    hidden = case.mask("query") | case.of_new
    split = case.again(with_ratings(case.dataset, hidden, case.dataset.rating + 100))
    for found, before in zip(split.cells, case.split.cells, strict=True):
        supports = [replace(cell.tasks.support, rating=cell.tasks.rating[:0]) for cell in (found, before)]
        assert same(*supports)
        changed = (found.tasks.support.rating - before.tasks.support.rating).unique().tolist()
        assert set(changed) <= {0.0, 100.0}
        assert same(found.tasks.query, before.tasks.query)
        assert torch.equal(found.tasks.rating, before.tasks.rating + 100)


def test_attributes_of_new_entities_do_not_reach_encoders_or_training_features(case):
    """A new entity with attributes that no known one has changes its own features, and nothing else."""

    def strange(side: str) -> Dataset:
        entities = case.dataset.entities(side)
        known = entities.ids.is_in(case.split.train.entities(side).ids.implode())
        others = {
            "age": pl.lit(1000),
            "occupation": pl.lit("astronaut"),
            "kinds": pl.lit(["opera"], dtype=pl.List(pl.String)),
            "price": pl.lit(1e6),
        }
        changed = entities.attributes.with_columns(
            pl.when(known).then(name).otherwise(other).alias(name)
            for name, other in others.items()
            if name in entities.attributes.columns
        )
        return replace(case.dataset, **{f"{side}s": replace(entities, attributes=changed)})

    for side in ("user", "item"):
        split = case.again(strange(side))
        assert same(split.train, case.split.train)
        assert split.encoders.table() == case.split.encoders.table()
        cell = next(cell for cell in split.cells if cell.scenario == "new-both")
        before = next(cell for cell in case.split.cells if cell.scenario == "new-both")
        rows = "entities" if side == "user" else "partners"
        features: list[Features] = [getattr(c.tasks.support, rows).features for c in (cell, before)]
        assert not torch.equal(features[0].dense(), features[1].dense())


def test_new_entities_may_as_well_have_no_ratings(make_dataset):
    """The training set of `cold-start` is the same if all that new entities did is taken out of the raw data."""
    dataset = make_dataset(users=80, items=60)
    protocol = plugin_manager().protocols.create("cold-start")
    case = Case(protocol, dataset, protocol.split(dataset, seed=0))
    assert same(case.again(dataset.take(~case.of_new)).train, case.split.train)


@pytest.fixture(scope="module")
def poisoned(make_dataset) -> dict[str, tuple[Split, Split]]:
    """By feedback: a split, and that of the same data with NaN for every query's rating."""
    splits = {}
    for feedback in ("explicit", "implicit"):
        dataset = make_dataset(users=60, items=50, implicit=feedback == "implicit")
        protocol = plugin_manager().protocols.create("cold-start", support_sizes=(0, 3, "all"))
        case = Case(protocol, dataset, protocol.split(dataset, seed=0))
        splits[feedback] = case.split, case.again(with_ratings(dataset, case.mask("query"), torch.nan))
    return splits


@pytest.mark.parametrize(("name", "feedback"), FEEDBACK)
def test_no_algorithm_sees_a_query(poisoned, name, feedback):
    """With NaN for the ratings of all queries, what is learnt and predicted is the same bit for bit."""
    clean, bad = poisoned[feedback]
    fitted = [ALGORITHMS.create(name).fit(split.train, run=Run(seed=2)) for split in (clean, bad)]
    assert fitted[0].state().keys() and same(*(algorithm.state() for algorithm in fitted))
    for before, after in zip(clean.cells, bad.cells, strict=True):
        assert after.tasks.rating.isnan().all()
        if before.scenario not in fitted[0].scenarios:
            continue
        predictions = [
            algorithm.predict(algorithm.adapt(cell.tasks.support), cell.tasks.query)
            for algorithm, cell in zip(fitted, (before, after), strict=True)
        ]
        assert predictions[1].mean.isfinite().all() and same(*predictions)

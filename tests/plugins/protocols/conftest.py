"""Splits in the source's own ids, so that no renumbering can hide a mistake."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest

from metarec.data import Dataset
from metarec.tasks import Cell, Split

Pair = tuple[object, object]


@dataclass(frozen=True)
class Told:
    """What a cell's tasks hold: (user id, item id, rating) in order, by the id of the task's entity."""

    side: str
    support: dict[object, list[tuple]]
    query: dict[object, list[tuple]]
    excluded: dict[object, list]
    candidates: set


def told(dataset: Dataset, cell: Cell) -> Told:
    """The tasks of a cell in the ids of the whole data set."""
    tasks, side = cell.tasks, cell.tasks.support.side
    names = dataset.entities(side).ids.gather(tasks.entity.tolist()).to_list()
    partners = dataset.entities("item" if side == "user" else "user").ids.to_list()

    def by_task(ragged, rating=None) -> dict:
        ends = ragged.offsets.tolist()
        called = [partners[place] for place in ragged.partner.tolist()]
        values = called if rating is None else list(zip(called, rating.tolist(), strict=True))
        lists = {name: values[a:b] for name, (a, b) in zip(names, pairwise(ends), strict=True)}
        if rating is None:
            return lists
        return {
            name: [(name, other, r) if side == "user" else (other, name, r) for other, r in part]
            for name, part in lists.items()
        }

    return Told(
        side,
        by_task(tasks.support, tasks.support.rating),
        by_task(tasks.query, tasks.rating),
        {} if tasks.excluded is None else by_task(tasks.excluded),
        {partners[place] for place in tasks.candidates.tolist()},
    )


def triples(dataset: Dataset) -> list[tuple]:
    """(user id, item id, rating) of every interaction, in order."""
    users = dataset.users.ids.gather(dataset.user.tolist()).to_list()
    items = dataset.items.ids.gather(dataset.item.tolist()).to_list()
    return list(zip(users, items, dataset.rating.tolist(), strict=True))


@dataclass(frozen=True)
class Unfolded:
    """A split, and its parts by ids."""

    dataset: Dataset
    split: Split

    @property
    def everything(self) -> list[tuple]:
        return triples(self.dataset)

    @property
    def train(self) -> list[tuple]:
        return triples(self.split.train)

    @property
    def known_users(self) -> set:
        return set(self.split.train.users.ids.to_list())

    @property
    def known_items(self) -> set:
        return set(self.split.train.items.ids.to_list())

    @property
    def scenarios(self) -> list[str]:
        return list(dict.fromkeys(cell.scenario for cell in self.split.cells))

    def cells(self, scenario: str) -> list[Told]:
        return [told(self.dataset, cell) for cell in self.split.cells if cell.scenario == scenario]


@pytest.fixture(scope="session")
def unfold() -> Callable[[Dataset, Split], Unfolded]:
    """A function that shows a split in ids."""
    return Unfolded

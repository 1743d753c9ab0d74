"""The protocol of MeLU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metarec import hookimpl
from metarec.data import Dataset
from metarec.errors import DataError
from metarec.features import as_numbers
from metarec.tasks import Cell, Partition, Protocol, Split, draw_queries

NEW_FROM = 1998
EXISTING_USERS = 0.8
RATINGS = (13, 100)
QUERIES = 10


class MeLU(Protocol):
    """Items of 1998 and later are new, and so is one user in five, drawn at random; every task is a user's.

    The ratings fall into four partitions: warm (existing users and items), new-user, new-item and new-both. In each,
    the users with 13 to 100 ratings are kept; ten of their ratings, drawn at random, are the query, the rest the
    support. The training set is the support of warm; MeLU's own code trains on the query of warm too and reports
    its error there, which we do not. Items without a year are in no partition.

    In new-item and new-both both support and query are of new items, so that only content can carry anything from one
    to the other.

    Parameters
    ----------
    history : bool, default False
        Whether the tasks of new-item may use what is known of existing users: then their training ratings are in
        the support as well.

    References
    ----------
    Lee, Im, Jang, Cho, Chung 2019. MeLU: Meta-Learned User Preference Estimator for Cold-Start Recommendation,
    section 4.1.
    """

    name = "melu"

    def __init__(self, *, history: bool = False) -> None:
        self.history = history

    def split(self, dataset: Dataset, *, seed: int) -> Split:
        """The training set and one cell per scenario, its supports as large as they are.

        Raises
        ------
        DataError
            The data set is implicit, its items have no attribute ``year``, or nothing is left to train on.
        """
        if dataset.scale.implicit:
            raise DataError(f"protocol 'melu': data set {dataset.name!r} is implicit, expected ratings")
        generator = torch.Generator().manual_seed(seed)
        year = _years(dataset)
        new_user = _new_users(len(dataset.users), generator)[dataset.user.long()]
        new_item, old_item = (year >= NEW_FROM)[dataset.item.long()], (year < NEW_FROM)[dataset.item.long()]
        parts = {
            "warm": ~new_user & old_item,
            "new-user": new_user & old_item,
            "new-item": ~new_user & new_item,
            "new-both": new_user & new_item,
        }
        drawn = {scenario: _draw(dataset, part, generator) for scenario, part in parts.items()}
        training = drawn["warm"][0]
        partition = Partition.of(dataset, training)
        cells = [
            self._cell(scenario, partition, support, query, training)
            for scenario, (support, query) in drawn.items()
            if query.numel()
        ]
        return Split(partition.train, partition.encoders, cells)

    def _cell(
        self, scenario: str, partition: Partition, support: Tensor, query: Tensor, training: Tensor
    ) -> Cell:
        history = scenario == "warm" or self.history
        if scenario == "new-item" and self.history:
            support = torch.cat([training, support])
        known_item = partition.item_rows >= 0
        candidates = known_item if scenario in ("warm", "new-user") else ~known_item
        tasks = partition.tasks("user", support=support, query=query, candidates=candidates, history=history)
        return Cell(scenario, None, tasks)


def _years(dataset: Dataset) -> Tensor:
    """float [number of items]: year of release; NaN where missing."""
    attributes = dataset.items.attributes
    if "year" not in attributes.columns:
        found = ", ".join(attributes.columns) or "none"
        raise DataError(
            f"protocol 'melu': items of data set {dataset.name!r} have no attribute 'year' (found: {found})"
        )
    return torch.from_numpy(as_numbers(attributes["year"]).fill_null(float("nan")).to_numpy(writable=True))


def _new_users(count: int, generator: torch.Generator) -> Tensor:
    """bool [count]."""
    return torch.randperm(count, generator=generator) >= round(EXISTING_USERS * count)


def _draw(dataset: Dataset, part: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Support and query of the users kept in a partition (bool [n]), as interactions."""
    interactions = part.nonzero().flatten()
    least, most = RATINGS
    rest, queries = draw_queries(dataset.user[interactions], QUERIES, generator, least=least, most=most)
    return interactions[rest], interactions[queries]


@hookimpl
def register_protocols(register: Callable[[type[Protocol]], None]) -> None:
    """Register `MeLU`."""
    register(MeLU)

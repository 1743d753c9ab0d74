"""Our own protocol: newcomers on either side, from no rating to many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from metarec import Range, hookimpl
from metarec.data import Dataset, Side
from metarec.errors import ConfigError, DataError
from metarec.tasks import Cell, Partition, Protocol, Split, SupportSize, random_places, support_curve

Share = Annotated[float, Range(0.0, 0.9)]


class ColdStart(Protocol):
    """Some users and some items, drawn at random, are new; the rest is for training.

    ==========  ==================  ==============================  ===============================
    scenario    task                support, drawn from             query
    ==========  ==================  ==============================  ===============================
    new-user    a new user          their ratings of known items    the rest of these
    new-item    a new item          its ratings by known users      the rest of these
    new-both    a new user          as in new-user                  their ratings of new items
    warm        a known user        all their training ratings      those held out of training
    ==========  ==================  ==============================  ===============================

    The training set is what known users rated among known items, less the query of warm. An entity that has no
    training rating is neither known nor new: it is in no query.

    A task's ratings stand in one random order. Its query is the same for all support sizes, and each support is the
    beginning of the next larger one. A task with fewer ratings than a size asks for uses all it has, so that a curve
    over the sizes is always over the same tasks.

    Explicit ratings are ranked in two lists: the query, and the catalogue, which is all known partners (in new-both all
    new items) but those of the largest support. Implicit feedback is ranked in the catalogue only.

    Parameters
    ----------
    new_users, new_items : float, default 0.2
        Share of the users and of the items that are new.
    query : float, default 0.5
        Share of a newcomer's ratings that are its query, rounded down.
    warm_query : float, default 0.2
        Share of a known user's ratings that are held out of training, rounded down; one rating of each item, drawn
        at random, is never among them.
    min_support, min_query : int, default 5 and 3
        A task with fewer ratings to draw supports from, or a smaller query, is left out.
    support_sizes : tuple of int or "all", default (0, 1, 3, 5, 10, 20, "all")
        Ratings in the supports of newcomers.
    """

    name = "cold-start"

    def __init__(
        self,
        *,
        new_users: Share = 0.2,
        new_items: Share = 0.2,
        query: Share = 0.5,
        warm_query: Share = 0.2,
        min_support: Annotated[int, Range(0, 1_000_000)] = 5,
        min_query: Annotated[int, Range(1, 1_000_000)] = 3,
        support_sizes: tuple[SupportSize, ...] = (0, 1, 3, 5, 10, 20, "all"),
    ) -> None:
        self.new_users = new_users
        self.new_items = new_items
        self.query = query
        self.warm_query = warm_query
        self.min_support = min_support
        self.min_query = min_query
        self.support_sizes = support_sizes

    def split(self, dataset: Dataset, *, seed: int) -> Split:
        """The training set, and the tasks of every scenario that has some.

        Raises
        ------
        ConfigError
            A support size below 0.
        DataError
            There is nothing to train on, or no scenario has a task.
        """
        self._check_sizes()
        generator = torch.Generator().manual_seed(seed)
        is_new_user = _draw(len(dataset.users), self.new_users, generator)
        is_new_item = _draw(len(dataset.items), self.new_items, generator)
        new_user, new_item = is_new_user[dataset.user.long()], is_new_item[dataset.item.long()]

        among_known = _where(~new_user & ~new_item)
        held_out = self._held_out(dataset, among_known, generator)
        training = among_known[~held_out]
        partition = Partition.of(dataset, training)
        known_users, known_items = partition.user_rows >= 0, partition.item_rows >= 0

        of_users = self._divide(dataset.user, _where(new_user & partition.known("item")), generator)
        of_items = self._divide(dataset.item, _where(new_item & partition.known("user")), generator)
        between_new = _where(new_user & new_item)
        cells = [
            *self._cells("warm", "user", partition, training, among_known[held_out], known_items),
            *self._cells("new-user", "user", partition, *of_users, known_items),
            *self._cells("new-item", "item", partition, *of_items, known_users),
            *self._cells("new-both", "user", partition, of_users[0], between_new, is_new_item),
        ]
        if not cells:
            raise DataError(
                f"data set {dataset.name!r}: no task has {self.min_support} ratings for its support and "
                f"{self.min_query} for its query (min_support and min_query of protocol 'cold-start')"
            )
        return Split(partition.train, partition.encoders, cells)

    def _check_sizes(self) -> None:
        for size in self.support_sizes:
            if size != "all" and size < 0:
                raise ConfigError(f"protocol 'cold-start': support_sizes holds {size}, expected 0 or more")

    def _held_out(self, dataset: Dataset, known: Tensor, generator: torch.Generator) -> Tensor:
        """bool [m]: which of the `known` interactions are the query of warm."""
        user, item = dataset.user[known], dataset.item[known]
        share = (torch.bincount(user) * self.warm_query).long()
        kept_for_item = random_places(item, generator) == 0
        return (random_places(user, generator) < share[user.long()]) & ~kept_for_item

    def _divide(self, owner: Tensor, pool: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Support in random order, and query, of the newcomers that own the interactions `pool`."""
        place = random_places(owner[pool], generator)
        share = (torch.bincount(owner[pool]) * self.query).long()
        is_query = place < share[owner[pool].long()]
        by_place = place.argsort()
        return pool[by_place][~is_query[by_place]], pool[is_query]

    def _cells(
        self,
        scenario: str,
        side: Side,
        partition: Partition,
        support: Tensor,
        query: Tensor,
        candidates: Tensor,
    ) -> list[Cell]:
        dataset = partition.dataset
        owner, count = dataset.rows(side), len(dataset.entities(side))
        enough = torch.bincount(owner[support], minlength=count) >= self.min_support
        enough &= torch.bincount(owner[query], minlength=count) >= self.min_query
        query = query[enough[owner[query].long()]]
        if query.numel() == 0:
            return []
        tasks = partition.tasks(side, support=support, query=query, candidates=candidates)
        sizes: tuple[SupportSize, ...] = ("all",) if scenario == "warm" else self.support_sizes
        return support_curve(scenario, tasks, sizes, _lists(dataset))


def _draw(count: int, share: float, generator: torch.Generator) -> Tensor:
    """bool [count]: a random share."""
    return torch.randperm(count, generator=generator) < round(share * count)


def _where(mask: Tensor) -> Tensor:
    return mask.nonzero().flatten()


def _lists(dataset: Dataset) -> tuple[str, ...]:
    return ("catalogue",) if dataset.scale.implicit else ("query", "catalogue")


@hookimpl
def register_protocols(register: Callable[[type[Protocol]], None]) -> None:
    """Register `ColdStart`."""
    register(ColdStart)

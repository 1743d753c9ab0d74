"""What protocols share: from the choice of training interactions to a training set and tasks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from metarec.data import Dataset, Side, partner_side
from metarec.errors import DataError
from metarec.features import SideEncoders, encode, fit_encoders
from metarec.tasks.protocol import Cell
from metarec.tasks.task import EntityRows, Query, Ragged, Support, Tasks

SupportSize = int | Literal["all"]


@dataclass(frozen=True)
class Partition:
    """A data set, of which some interactions are for training: their users and items are known, all others new.

    Parameters
    ----------
    dataset : Dataset
        All of it, its features by encoders that are fitted on the known entities.
    train : Dataset
        The known entities, renumbered, and the training interactions.
    encoders : SideEncoders
    user_rows, item_rows : int64 [number of users], [number of items]
        Row in `train`; −1 where new.
    """

    dataset: Dataset
    train: Dataset
    encoders: SideEncoders
    user_rows: Tensor
    item_rows: Tensor

    @classmethod
    def of(cls, dataset: Dataset, training: Tensor) -> Self:
        """The partition whose training interactions are `training` (int64 [m], indices of interactions).

        Raises
        ------
        DataError
            There are none.
        """
        if training.numel() == 0:
            raise DataError(f"data set {dataset.name!r}: no interaction is left for training")
        chosen = dataset.take(training)
        users, items = _distinct(chosen.user), _distinct(chosen.item)
        train = chosen.restrict(users, items)
        encoders = fit_encoders(train)
        return cls(
            dataset=encode(dataset, encoders),
            train=encode(train, encoders),
            encoders=encoders,
            user_rows=_places(users, len(dataset.users)),
            item_rows=_places(items, len(dataset.items)),
        )

    def rows(self, side: Side) -> Tensor:
        """int64 [number of entities]: each entity's row in the training set; −1 where new."""
        return self.user_rows if side == "user" else self.item_rows

    def known(self, side: Side) -> Tensor:
        """bool [n]: whether each interaction's entity on a side is known."""
        return (self.rows(side) >= 0)[self.dataset.rows(side).long()]

    def tasks(
        self, side: Side, *, support: Tensor, query: Tensor, candidates: Tensor, history: bool = True
    ) -> Tasks:
        """One task for every entity that has a query, by rising row.

        Parameters
        ----------
        side : "user" or "item"
            The table that the tasks' entities stand in.
        support, query : int64 [m]
            Interactions; each task's keep their order. Those of an entity without a query are left out of `support`.
        candidates : bool [P]
            The partners that a list over the full catalogue may name.
        history : bool, default True
            Whether what `fit` learnt of a known entity may be used. Its training ratings are only in the support if
            they are in `support`.

        Returns
        -------
        Tasks
            `partners` are all partners of the data set.
        """
        entity_of = self.dataset.rows(side).long()
        partner_of = self.dataset.rows(partner_side(side)).long()
        entity = _distinct(entity_of[query])
        task_of = _places(entity, len(self.dataset.entities(side)))[entity_of]
        support = support[task_of[support] >= 0]
        supports = Ragged.grouped(task_of[support], entity.numel())
        queries = Ragged.grouped(task_of[query], entity.numel())
        support, query = support[supports.partner], query[queries.partner]
        entities = self._entity_rows(side).select(entity)
        if not history:
            entities = replace(entities, rows=torch.full_like(entities.rows, -1))
        partners = self._entity_rows(partner_side(side))
        return Tasks(
            support=Support(
                offsets=supports.offsets,
                partner=partner_of[support],
                side=side,
                entities=entities,
                partners=partners,
                rating=self.dataset.rating[support],
            ),
            query=Query(queries.offsets, partner_of[query], partners),
            rating=self.dataset.rating[query],
            entity=entity,
            candidates=candidates.nonzero().flatten(),
        )

    def _entity_rows(self, side: Side) -> EntityRows:
        features = self.dataset.entities(side).features
        assert features is not None, "`of` encodes both sides"
        return EntityRows(self.rows(side), features)


def draw_queries(
    owner: Tensor, count: int, generator: torch.Generator, *, least: int, most: int
) -> tuple[Tensor, Tensor]:
    """`count` random entries of every owner that has `least` to `most` of them, and the rest of these owners' entries.

    Parameters
    ----------
    owner : int [n]
        Whose each entry is.
    count : int
    generator : torch.Generator
    least, most : int

    Returns
    -------
    rest, queries : bool [n]
    """
    sizes = torch.bincount(owner)[owner]
    kept = (sizes >= least) & (sizes <= most)
    is_query = random_places(owner, generator) < count
    return kept & ~is_query, kept & is_query


def random_places(owner: Tensor, generator: torch.Generator) -> Tensor:
    """int64 [n]: the place, from 0, of each entry in a random order of those that have the same `owner` (int [n])."""
    shuffled = torch.randperm(owner.numel(), generator=generator)
    lists = Ragged.grouped(owner[shuffled].long(), int(owner.max()) + 1 if owner.numel() else 0)
    places = torch.empty_like(shuffled)
    places[shuffled[lists.partner]] = torch.arange(owner.numel()) - lists.offsets[lists.owner]
    return places


def support_curve(
    scenario: str, tasks: Tasks, sizes: Iterable[SupportSize], lists: tuple[str, ...]
) -> list[Cell]:
    """A cell per support size, all with the same tasks and queries, each support the first ratings of the larger ones.

    Parameters
    ----------
    scenario : str
    tasks : Tasks
        With the largest supports.
    sizes : iterable of int or "all"
        A task that has fewer ratings uses all it has.
    lists : tuple of "query", "catalogue"
        As in `Cell`. Lists over the catalogue leave out the largest support, whatever the size.
    """
    whole = tasks.support
    tasks = replace(tasks, excluded=Ragged(whole.offsets, whole.partner))
    return [
        Cell(scenario, None, tasks, lists)
        if size == "all"
        else Cell(scenario, size, replace(tasks, support=whole.first(size)), lists)
        for size in sizes
    ]


def _distinct(rows: Tensor) -> Tensor:
    """int64: the different values of `rows`, rising."""
    return torch.bincount(rows).nonzero().flatten()


def _places(chosen: Tensor, count: int) -> Tensor:
    """int64 [count]: the place of each of 0 … count − 1 in `chosen`; −1 where it is not in there."""
    places = torch.full((count,), -1, dtype=torch.int64)
    places[chosen] = torch.arange(chosen.numel())
    return places

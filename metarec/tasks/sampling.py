"""Training tasks: known entities taken for new ones, their training ratings divided into support and query."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Protocol, Self

import torch
from torch import Tensor

from metarec.data import Dataset, Features, Side, partner_side
from metarec.options import Range
from metarec.tasks.mixing import mix
from metarec.tasks.task import EntityRows, Query, Ragged, Support, Tasks


@dataclass(frozen=True)
class Sampling:
    """How training tasks are drawn.

    Parameters
    ----------
    tasks : int, default 32
        Tasks in a batch.
    max_support, max_query : int, default 100 and 100
        A task's support holds from 0 to this many of its ratings, the number drawn log-uniformly, so that supports of a
        few ratings are as common as they are among newcomers; its query holds as many of the rest as fit.
    new_partners : float, default 0.2
        Share of the tasks that take the partners in their query for new ones; half of these do so in their support too.
        That is how attributes learn to speak for what nobody has rated.
    rating_noise : float, default 0
        Standard deviation of what is added to the support's ratings, in units of the rating.
    attribute_dropout : float, default 0
        Probability with which any attribute of an entity, or of a partner, is missing in a batch.
    mixed : float, default 0
        Share of the tasks that are moved towards another of their batch (`mix`), by λ ~ Beta(½, ½).
    virtual : float, default 0
        Share of the tasks whose ratings are not the entity's own but those of a virtual one with the same attributes,
        drawn from a model that is fitted first (`metarec.learning.VirtualEntities`); explicit feedback only.
    negatives : int, default 4
        Where feedback is implicit: partners drawn at random, with a rating of 0, for each rating of the query.
    """

    tasks: Annotated[int, Range(1, 65536)] = 32
    max_support: Annotated[int, Range(0, 100_000)] = 100
    max_query: Annotated[int, Range(1, 100_000)] = 100
    new_partners: Annotated[float, Range(0.0, 1.0)] = 0.2
    rating_noise: Annotated[float, Range(0.0, 10.0)] = 0.0
    attribute_dropout: Annotated[float, Range(0.0, 1.0)] = 0.0
    mixed: Annotated[float, Range(0.0, 1.0)] = 0.0
    virtual: Annotated[float, Range(0.0, 1.0)] = 0.0
    negatives: Annotated[int, Range(0, 1000)] = 4


class RatingGenerator(Protocol):
    """What draws the ratings of virtual entities."""

    def ratings(self, side: Side, features: Features, lists: Ragged, generator: torch.Generator) -> Tensor:
        """float [n]: ratings of the known partners in `lists` (rows), by entities of a side with these attributes."""
        ...


class TaskSampler:
    """Draws batches of training tasks.

    Parameters
    ----------
    train : Dataset
        Known entities, with features.
    sides : sequence of "user", "item"
        Whose tasks to draw; the batches of both come in random order.
    sampling : Sampling
    device : torch.device
    dtype : torch.dtype
        Of features and ratings.
    """

    def __init__(
        self,
        train: Dataset,
        sides: Sequence[Side],
        sampling: Sampling,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.sampling = sampling
        self._device = device
        self._pools = [_Pool.of(train, side, device, dtype) for side in sides]
        self._virtual: RatingGenerator | None = None

    @property
    def interactions(self) -> Tensor:
        """int64 [n]: the places in the training set of the ratings that tasks are drawn from."""
        return self._pools[0].interaction.sort().values.cpu()

    def with_virtual(self, virtual: RatingGenerator) -> TaskSampler:
        """The same, with virtual entities' ratings for their share of the tasks."""
        other = copy(self)
        other._virtual = virtual
        return other

    def __len__(self) -> int:
        return sum(-(-pool.drawable.numel() // self.sampling.tasks) for pool in self._pools)

    def epoch(self, generator: torch.Generator) -> Iterator[Tasks]:
        """Batches in which every known entity with at least two ratings stands once, in random order."""
        blocks = [
            (pool, entities)
            for pool in self._pools
            if pool.drawable.numel()
            for entities in torch.split(
                pool.drawable[_permutation(pool.drawable, generator)], self.sampling.tasks
            )
        ]
        for number in torch.randperm(len(blocks), generator=generator).tolist():
            pool, entities = blocks[number]
            yield self._draw(pool, entities, generator)

    def hold_out(self, share: float, generator: torch.Generator) -> tuple[TaskSampler, list[Tasks]]:
        """Take a share of the users and of the items for newcomers: a sampler without them, and batches of their tasks.

        What they rated, and how they were rated, is in no epoch of the sampler. Their tasks are alike those of the
        scenarios: of newcomers among known partners, with support and query, and of all entities among partners that
        are newcomers, as new ones.

        Parameters
        ----------
        share : float
        generator : torch.Generator

        Returns
        -------
        TaskSampler
            The rest; rows are as they were.
        list of Tasks
            Neither noisy, nor mixed, nor virtual, nor with attributes left out.
        """
        is_new: dict[Side, Tensor] = {}
        for side in ("user", "item"):
            count = self._pools[0].size(side)
            order = torch.randperm(count, generator=generator).to(self._device)
            is_new[side] = order < round(share * count)
        rest, newcomers = [], []
        for pool in self._pools:
            entity, partner = is_new[pool.side], is_new[partner_side(pool.side)]
            rest.append(pool.among(~entity, ~partner))
            newcomers += [pool.among(entity, ~partner), pool.among(torch.ones_like(entity), partner).as_new()]
        plain = replace(
            self.sampling, new_partners=0.0, rating_noise=0.0, attribute_dropout=0.0, mixed=0.0, virtual=0.0
        )
        batches = list(self._over(newcomers, plain).epoch(generator))
        return self._over(rest, self.sampling), batches

    def _over(self, pools: Sequence[_Pool], sampling: Sampling) -> TaskSampler:
        other = copy(self)
        other._pools, other.sampling = list(pools), sampling
        return other

    def _draw(self, pool: _Pool, entities: Tensor, generator: torch.Generator) -> Tasks:
        offsets, entry = pool.lists.entries(entities)
        lists = Ragged(offsets, entry)
        shuffled = _permutation(entry, generator)
        owner = lists.owner[shuffled]
        by_owner = owner.argsort(stable=True)
        owner, entry = owner[by_owner], entry[shuffled[by_owner]]
        place = torch.arange(entry.numel(), device=entry.device) - offsets[owner]
        size = self._support_sizes(lists.counts, generator)[owner]
        support, query = place < size, (place >= size) & (place < size + self.sampling.max_query)
        support_new, query_new = self._take_for_new(entities, generator)
        rated = self._ratings(pool, entities, Ragged(offsets, entry), generator)
        asked, partner, rating = self._with_negatives(
            pool, owner[query], entry[query], rated[query], generator
        )
        partners = self._incomplete(pool.partners, generator)
        own = EntityRows(torch.full_like(entities, -1), pool.features.rows(entities))
        tasks = Tasks(
            support=Support(
                offsets=_offsets(owner[support], lists),
                partner=pool.lists.partner[entry[support]] + pool.count * support_new[owner[support]],
                side=pool.side,
                entities=self._incomplete(own, generator),
                partners=partners,
                rating=self._noisy(rated[support], generator),
            ),
            query=Query(_offsets(asked, lists), partner + pool.count * query_new[asked], partners),
            rating=rating,
            entity=entities,
            candidates=torch.arange(pool.count, device=entities.device),
        )
        return self._mixed(tasks, generator)

    def _ratings(self, pool: _Pool, entities: Tensor, lists: Ragged, generator: torch.Generator) -> Tensor:
        """float [n]: of each entry, by its own entity or a virtual one."""
        own = pool.rating[lists.partner]
        if self._virtual is None or self.sampling.virtual == 0:
            return own
        is_virtual = _uniform(entities, generator) < self.sampling.virtual
        met = Ragged(lists.offsets, pool.lists.partner[lists.partner])
        drawn = self._virtual.ratings(pool.side, pool.features.rows(entities), met, generator)
        return torch.where(is_virtual[lists.owner], drawn, own)

    def _with_negatives(
        self, pool: _Pool, owner: Tensor, entry: Tensor, rating: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Owner, partner and rating of the query, where feedback is implicit with partners that were not chosen."""
        partner = pool.lists.partner[entry]
        if not pool.implicit:
            return owner, partner, rating
        shape = (entry.numel(), self.sampling.negatives)
        drawn = _there(torch.randint(pool.choice.numel(), shape, generator=generator), entry)
        each = 1 + self.sampling.negatives
        rating = torch.cat([rating.unsqueeze(1), rating.new_zeros(shape)], 1)
        return (
            owner.repeat_interleave(each),
            torch.cat([partner.unsqueeze(1), pool.choice[drawn]], 1).flatten(),
            rating.flatten(),
        )

    def _support_sizes(self, counts: Tensor, generator: torch.Generator) -> Tensor:
        """int64 [b]: log-uniform from 0 to the greatest size that leaves a rating for the query."""
        most = (counts - 1).clamp(max=self.sampling.max_support)
        return (most + 2).double().pow(_uniform(counts, generator)).long() - 1

    def _take_for_new(self, entities: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """bool [b] twice: which tasks take the partners in their support, and in their query, for new ones."""
        drawn = _uniform(entities, generator)
        return drawn < self.sampling.new_partners / 2, drawn < self.sampling.new_partners

    def _incomplete(self, entities: EntityRows, generator: torch.Generator) -> EntityRows:
        """With some attributes left out."""
        features = entities.features
        if self.sampling.attribute_dropout == 0 or not features.blocks:
            return entities
        shape = (len(features), len(features.blocks))
        drawn = _there(torch.rand(shape, generator=generator), features.values)
        return replace(entities, features=features.without(drawn < self.sampling.attribute_dropout))

    def _mixed(self, tasks: Tasks, generator: torch.Generator) -> Tasks:
        """Some moved towards others."""
        if self.sampling.mixed == 0:
            return tasks
        own = torch.arange(len(tasks), device=tasks.entity.device)
        chosen = _uniform(own, generator) < self.sampling.mixed
        other = torch.where(chosen, _permutation(own, generator), own)
        share = (_uniform(own, generator) * (torch.pi / 2)).sin().square()  # Beta(½, ½)
        return mix(tasks, other, share.to(tasks.rating.dtype))

    def _noisy(self, rating: Tensor, generator: torch.Generator) -> Tensor:
        if self.sampling.rating_noise == 0:
            return rating
        noise = torch.randn(rating.shape, generator=generator, dtype=rating.dtype)
        return rating + self.sampling.rating_noise * _there(noise, rating)


@dataclass(frozen=True)
class _Pool:
    """Ratings of one side's entities, entity by entity.

    Every partner stands twice in `partners`: as row p the known one, as row ``count + p`` the same as a new one.
    `choice` are those that a partner which was not chosen may be drawn from, `interaction` the places of the ratings in
    the training set.
    """

    side: Side
    features: Features
    partners: EntityRows
    count: int
    choice: Tensor
    lists: Ragged
    rating: Tensor
    interaction: Tensor
    implicit: bool

    @classmethod
    def of(cls, train: Dataset, side: Side, device: torch.device, dtype: torch.dtype) -> Self:
        """All training ratings."""
        entities, partners = train.entities(side), train.entities(partner_side(side))
        assert entities.features is not None and partners.features is not None, "a split encodes both sides"
        count = len(partners)
        by_entity = Ragged.grouped(train.rows(side).long(), len(entities))
        known = torch.arange(count)
        twice = EntityRows(
            torch.cat([known, torch.full_like(known, -1)]), partners.features.rows(known.repeat(2))
        )
        partner = train.rows(partner_side(side)).long()[by_entity.partner]
        return cls(
            side=side,
            features=entities.features.to(device, dtype),
            partners=twice.to(device, dtype),
            count=count,
            choice=known.to(device),
            lists=Ragged(by_entity.offsets.to(device), partner.to(device)),
            rating=train.rating[by_entity.partner].to(device, dtype),
            interaction=by_entity.partner.to(device),
            implicit=train.scale.implicit,
        )

    @cached_property
    def drawable(self) -> Tensor:
        """int64: the entities with a rating for the query and one for the support."""
        return (self.lists.counts >= 2).nonzero().flatten()

    def size(self, side: Side) -> int:
        """Number of users or of items."""
        return len(self.lists) if side == self.side else self.count

    def among(self, entities: Tensor, partners: Tensor) -> Self:
        """Only the ratings of some entities (bool [N]) and some partners (bool [count])."""
        owner = self.lists.owner
        kept = entities[owner] & partners[self.lists.partner]
        return replace(
            self,
            choice=partners.nonzero().flatten(),
            lists=Ragged(_offsets(owner[kept], self.lists), self.lists.partner[kept]),
            rating=self.rating[kept],
            interaction=self.interaction[kept],
        )

    def as_new(self) -> Self:
        """The same with all partners new."""
        rows = torch.full_like(self.partners.rows, -1)
        return replace(self, partners=replace(self.partners, rows=rows))


def _offsets(owner: Tensor, lists: Ragged) -> Tensor:
    return torch.cat([owner.new_zeros(1), torch.bincount(owner, minlength=len(lists)).cumsum(0)])


def _permutation(like: Tensor, generator: torch.Generator) -> Tensor:
    return _there(torch.randperm(like.numel(), generator=generator), like)


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return _there(torch.rand(like.numel(), generator=generator, dtype=torch.float64), like)


def _there(drawn: Tensor, like: Tensor) -> Tensor:
    """What was drawn on the CPU, so that one seed gives the same tasks on every device, where `like` is."""
    return drawn.to(like.device, non_blocking=True)

"""Training tasks: known entities taken for new ones, their training ratings divided into support and query."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Self

import torch
from torch import Tensor

from metarec.data import Dataset, Features, Side, partner_side
from metarec.options import Range
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
    negatives : int, default 4
        Where feedback is implicit: partners drawn at random, with a rating of 0, for each rating of the query.
    """

    tasks: Annotated[int, Range(1, 65536)] = 32
    max_support: Annotated[int, Range(0, 100_000)] = 100
    max_query: Annotated[int, Range(1, 100_000)] = 100
    new_partners: Annotated[float, Range(0.0, 1.0)] = 0.2
    rating_noise: Annotated[float, Range(0.0, 10.0)] = 0.0
    negatives: Annotated[int, Range(0, 1000)] = 4


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
        self._pools = [_Pool.of(train, side, device, dtype) for side in sides]

    def __len__(self) -> int:
        return sum(-(-pool.drawable.numel() // self.sampling.tasks) for pool in self._pools)

    def epoch(self, generator: torch.Generator) -> Iterator[Tasks]:
        """Batches in which every known entity with at least two ratings stands once, in random order."""
        blocks = [
            (pool, entities)
            for pool in self._pools
            for entities in torch.split(
                pool.drawable[_permutation(pool.drawable, generator)], self.sampling.tasks
            )
        ]
        for number in torch.randperm(len(blocks), generator=generator, device=generator.device).tolist():
            pool, entities = blocks[number]
            yield self._draw(pool, entities, generator)

    def hold_out(self, share: float, generator: torch.Generator) -> list[Tasks]:
        """Take a share of the entities of each side away, and give batches of their tasks."""
        taken = [pool.drawable[_permutation(pool.drawable, generator)] for pool in self._pools]
        sizes = [round(share * entities.numel()) for entities in taken]
        batches = [
            self._draw(pool, block, generator)
            for pool, entities, size in zip(self._pools, taken, sizes, strict=True)
            for block in torch.split(entities[:size], self.sampling.tasks)
            if size
        ]
        self._pools = [
            replace(pool, drawable=entities[size:])
            for pool, entities, size in zip(self._pools, taken, sizes, strict=True)
        ]
        return batches

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
        asked, partner, rating = self._with_negatives(pool, owner[query], entry[query], generator)
        return Tasks(
            support=Support(
                offsets=_offsets(owner[support], lists),
                partner=pool.lists.partner[entry[support]] + pool.count * support_new[owner[support]],
                side=pool.side,
                entities=EntityRows(torch.full_like(entities, -1), pool.features.rows(entities)),
                partners=pool.partners,
                rating=self._noisy(pool.rating[entry[support]], generator),
            ),
            query=Query(_offsets(asked, lists), partner + pool.count * query_new[asked], pool.partners),
            rating=rating,
            entity=entities,
            candidates=torch.arange(pool.count, device=entities.device),
        )

    def _with_negatives(
        self, pool: _Pool, owner: Tensor, entry: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Owner, partner and rating of the query, where feedback is implicit with partners that were not chosen."""
        partner, rating = pool.lists.partner[entry], pool.rating[entry]
        if not pool.implicit:
            return owner, partner, rating
        shape = (entry.numel(), self.sampling.negatives)
        drawn = torch.randint(pool.count, shape, generator=generator, device=entry.device)
        each = 1 + self.sampling.negatives
        rating = torch.cat([rating.unsqueeze(1), rating.new_zeros(shape)], 1)
        return (
            owner.repeat_interleave(each),
            torch.cat([partner.unsqueeze(1), drawn], 1).flatten(),
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

    def _noisy(self, rating: Tensor, generator: torch.Generator) -> Tensor:
        if self.sampling.rating_noise == 0:
            return rating
        noise = torch.randn(rating.shape, generator=generator, device=rating.device, dtype=rating.dtype)
        return rating + self.sampling.rating_noise * noise


@dataclass(frozen=True)
class _Pool:
    """The training ratings of one side's entities, entity by entity.

    Every partner stands twice in `partners`: as row p the known one, as row ``count + p`` the same as a new one.
    """

    side: Side
    features: Features
    partners: EntityRows
    count: int
    lists: Ragged
    rating: Tensor
    drawable: Tensor
    implicit: bool

    @classmethod
    def of(cls, train: Dataset, side: Side, device: torch.device, dtype: torch.dtype) -> Self:
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
            lists=Ragged(by_entity.offsets.to(device), partner.to(device)),
            rating=train.rating[by_entity.partner].to(device, dtype),
            drawable=(by_entity.counts >= 2).nonzero().flatten().to(device),
            implicit=train.scale.implicit,
        )


def _offsets(owner: Tensor, lists: Ragged) -> Tensor:
    return torch.cat([owner.new_zeros(1), torch.bincount(owner, minlength=len(lists)).cumsum(0)])


def _permutation(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randperm(like.numel(), generator=generator, device=like.device)


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(like.numel(), generator=generator, device=like.device, dtype=torch.float64)

"""Tasks: one entity each, with what we may adapt on and what we predict. Ragged, both sides alike."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metarec.data import Features, Side


@dataclass(frozen=True)
class EntityRows:
    """Entities as an algorithm may see them.

    Parameters
    ----------
    rows : int64 [N]
        Row in the training set; −1 where the entity is new, or where what `fit` learnt of it may not be used.
    features : Features [N rows]
        Encoded attributes.
    """

    rows: Tensor
    features: Features

    def __len__(self) -> int:
        return self.rows.numel()

    def select(self, index: Tensor) -> EntityRows:
        """The entities `index` (int [M]), in that order."""
        return EntityRows(self.rows[index.long()], self.features.rows(index))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> EntityRows:
        """The same on `device`, features as `dtype`."""
        return EntityRows(self.rows.to(device), self.features.to(device, dtype))


@dataclass(frozen=True)
class Ragged:
    """One list of partners per task: task t's are ``partner[offsets[t] : offsets[t + 1]]``.

    Parameters
    ----------
    offsets : int64 [T + 1]
    partner : int64 [n]
        Index into the batch's `partners`.
    """

    offsets: Tensor
    partner: Tensor

    @classmethod
    def empty(cls, tasks: int) -> Ragged:
        """`tasks` empty lists."""
        return cls(torch.zeros(tasks + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))

    @classmethod
    def grouped(cls, owner: Tensor, count: int) -> Ragged:
        """`count` lists of the places in `owner` (int64 [n], in ``[0, count)``) at which each list's number stands."""
        offsets = torch.cat([owner.new_zeros(1), torch.bincount(owner, minlength=count).cumsum(0)])
        return cls(offsets, owner.argsort(stable=True))

    def __len__(self) -> int:
        return self.offsets.numel() - 1

    @property
    def counts(self) -> Tensor:
        """int64 [T]: length of each list."""
        return self.offsets.diff()

    @property
    def owner(self) -> Tensor:
        """int64 [n]: the task that each entry belongs to."""
        tasks = torch.arange(len(self), device=self.offsets.device)
        return torch.repeat_interleave(tasks, self.counts, output_size=self.partner.numel())

    def entries(self, tasks: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets of the lists of `tasks` (int64 [M]) when put one after another, and the entries to take for them."""
        counts = self.counts[tasks]
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        total = int(offsets[-1])
        shift = torch.repeat_interleave(self.offsets[:-1][tasks] - offsets[:-1], counts, output_size=total)
        return offsets, shift + torch.arange(total, device=offsets.device)

    def sum(self, values: Tensor) -> Tensor:
        """float [T, …]: the sum of each list's `values` (float [n, …]); 0 where it is empty."""
        return torch.segment_reduce(values, "sum", offsets=self.offsets, axis=0, unsafe=True)

    def mean(self, values: Tensor) -> Tensor:
        """float [T]: the mean of each list's `values` (float [n]); NaN where it is empty."""
        return self.sum(values) / self.counts

    def median(self, values: Tensor) -> Tensor:
        """float [T]: the median of each list's `values` (float [n]), the mean of the middle two; NaN where empty."""
        by_value = values.argsort()
        ordered = values[by_value[self.owner[by_value].argsort(stable=True)]]
        middle = self.counts - 1
        lower = self.offsets[:-1] + middle.div(2, rounding_mode="floor")
        upper = lower + middle % 2
        padded = torch.cat([ordered, ordered.new_full((1,), torch.nan)])
        empty = self.counts == 0
        return (padded[lower.masked_fill(empty, -1)] + padded[upper.masked_fill(empty, -1)]) / 2

    def select(self, tasks: Tensor) -> Ragged:
        """Only the lists of `tasks` (int64 [M]), in that order."""
        offsets, entry = self.entries(tasks)
        return Ragged(offsets, self.partner[entry])


@dataclass(frozen=True)
class Support(Ragged):
    """What a batch of T tasks may adapt on. It holds no query.

    A support is *all* that may be used about its entities' own ratings: where a known entity's training ratings may
    be used, they are in it.

    Parameters
    ----------
    side : "user" or "item"
        The table that the tasks' entities stand in; their partners are of the other.
    entities : EntityRows [T]
    partners : EntityRows [P]
        The partners that `partner` counts in; shared by all tasks of the batch.
    rating : float [n]
        The ratings, or 1 where feedback is implicit.
    """

    side: Side
    entities: EntityRows
    partners: EntityRows
    rating: Tensor

    def select(self, tasks: Tensor) -> Support:
        """Only these tasks (int64 [M]), in that order; the partners stay."""
        offsets, entry = self.entries(tasks)
        return replace(
            self,
            entities=self.entities.select(tasks),
            offsets=offsets,
            partner=self.partner[entry],
            rating=self.rating[entry],
        )

    def first(self, size: int) -> Support:
        """Only the first `size` ratings of each task, or all where it has fewer."""
        place = torch.arange(self.rating.numel(), device=self.offsets.device) - self.offsets[self.owner]
        kept = place < size
        offsets = torch.cat([self.offsets[:1], self.counts.clamp(max=size).cumsum(0)])
        return replace(self, offsets=offsets, partner=self.partner[kept], rating=self.rating[kept])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Support:
        """The same on `device`, features and ratings as `dtype`."""
        return replace(
            self,
            entities=self.entities.to(device, dtype),
            partners=self.partners.to(device, dtype),
            offsets=self.offsets.to(device),
            partner=self.partner.to(device),
            rating=self.rating.to(device, dtype),
        )


@dataclass(frozen=True)
class Query(Ragged):
    """The partners to predict, for the same tasks in the same order as the support.

    Parameters
    ----------
    partners : EntityRows [P]
        The partners that `partner` counts in.
    """

    partners: EntityRows

    @classmethod
    def full(cls, tasks: int, partners: EntityRows, candidates: Tensor) -> Query:
        """Every one of `candidates` (int64 [C], index into `partners`) for every task."""
        count = candidates.numel()
        return cls(
            offsets=torch.arange(tasks + 1, device=candidates.device) * count,
            partner=candidates.repeat(tasks),
            partners=partners,
        )

    def select(self, tasks: Tensor) -> Query:
        """Only these tasks (int64 [M]), in that order; the partners stay."""
        offsets, entry = self.entries(tasks)
        return replace(self, offsets=offsets, partner=self.partner[entry])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Query:
        """The same on `device`, features as `dtype`."""
        return replace(
            self,
            offsets=self.offsets.to(device),
            partner=self.partner.to(device),
            partners=self.partners.to(device, dtype),
        )


@dataclass(frozen=True)
class Tasks:
    """Support, query, and what only the evaluator reads: the query's ratings.

    Parameters
    ----------
    support : Support
    query : Query
    rating : float [n]
        The query's ratings.
    entity : int64 [T]
        Row of each task's entity in the whole data set, so that a report can pair tasks across runs.
    candidates : int64 [C]
        The partners that a list over the full catalogue may name (index into `query.partners`).
    excluded : Ragged, optional
        Partners that a task's list over the full catalogue may not name, where they are more than its support: all
        that a larger support of the same scenario holds, so that lists are alike for every support size.
    """

    support: Support
    query: Query
    rating: Tensor
    entity: Tensor
    candidates: Tensor
    excluded: Ragged | None = None

    def __len__(self) -> int:
        return self.entity.numel()

    def select(self, tasks: Tensor) -> Tasks:
        """Only these tasks (int64 [M]), in that order."""
        _, entry = self.query.entries(tasks)
        return replace(
            self,
            support=self.support.select(tasks),
            query=self.query.select(tasks),
            rating=self.rating[entry],
            entity=self.entity[tasks],
            excluded=None if self.excluded is None else self.excluded.select(tasks),
        )

    def answers(self) -> Support:
        """The query and its ratings as a support of the same entities."""
        query, support = self.query, self.support
        return replace(
            support,
            offsets=query.offsets,
            partner=query.partner,
            partners=query.partners,
            rating=self.rating,
        )

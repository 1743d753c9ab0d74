"""`Scored`: the predictions of a cell as metrics see them, tie groups worked out once for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from metarec.data import Features, RatingScale
from metarec.evaluation.ranking import ragged_places


@dataclass(frozen=True)
class Catalogue:
    """The C candidates of lists over the full catalogue.

    Parameters
    ----------
    features : Features [C rows]
        Encoded attributes of the candidates.
    popularity : int64 [C]
        Training interactions of each; 0 where it is new.
    population : int
        Entities in training on the side of the tasks, each of which could have interacted.
    """

    features: Features
    popularity: Tensor
    population: int

    def __len__(self) -> int:
        return self.popularity.numel()


@dataclass(frozen=True)
class TieGroups:
    """Groups of partners with equal scores, each in the column of its first place: for T lists and k
    positions.

    Parameters
    ----------
    relevant : float64 [T, k]
        How many of the group are relevant; 0 where no group with any begins.
    size : float64 [T, k]
        How many it has altogether; at least 1.
    """

    relevant: Tensor
    size: Tensor

    @cached_property
    def start(self) -> Tensor:
        """int64 [k]: how many partners are above a group that begins in each column."""
        return torch.arange(self.size.shape[1], device=self.size.device)

    @cached_property
    def positions(self) -> Tensor:
        """float64 [k]: the positions of the list, from 1."""
        return (self.start + 1).double()

    @cached_property
    def within(self) -> Tensor:
        """float64 [T, k]: how many places of the group are among the first k."""
        return self.size.minimum(self.size.shape[1] - self.start)

    def position_sums(self, values: Tensor) -> Tensor:
        """float64 [T, k]: `values` [k], one per position, summed over the places of each group."""
        total = torch.nn.functional.pad(values.cumsum(0), (1, 0))
        return total[self.start + self.within.long()] - total[self.start]


@dataclass(frozen=True)
class Scored:
    """One list for each of T tasks: what was predicted for the query's n pairs, and where the list has them.

    A partner that the query does not name has no rating: it takes its place in a list and is not relevant. So
    all that ranking metrics need is, for each query pair, how many partners the list has above it and how
    many level with it.

    Parameters
    ----------
    scale : RatingScale
    offsets : int64 [T + 1]
        Task t's query pairs are ``offsets[t] : offsets[t + 1]``.
    rating, mean : float64 [n]
        The query's ratings and the predictive means, not clipped.
    variance : float64 [n], optional
        Predictive variances of a new observation, where the algorithm has them.
    start : int64 [n]
        Number of partners in the list with a greater score; any value of at least `depth` where it is not
        among the first `depth`.
    size : int64 [n]
        Number of partners in the list with the same score, itself included (only where ``start < depth``).
    depth : int
        How many positions of the list were worked out.
    top : int64 [T, depth], optional
        The list's first candidates (index into `catalogue`), ties by lower row; −1 where the list is shorter.
        Only for lists over the full catalogue, as the following.
    seen : bool [T, depth], optional
        Whether the first candidates are ones that the entity had before, in a list that does not leave those
        out.
    catalogue : Catalogue, optional
    """

    scale: RatingScale
    offsets: Tensor
    rating: Tensor
    mean: Tensor
    variance: Tensor | None
    start: Tensor
    size: Tensor
    depth: int
    top: Tensor | None = None
    seen: Tensor | None = None
    catalogue: Catalogue | None = None

    @classmethod
    def of_query(
        cls,
        scale: RatingScale,
        offsets: Tensor,
        rating: Tensor,
        mean: Tensor,
        variance: Tensor | None = None,
    ) -> Scored:
        """Lists that are the query itself, ranked by the predictive means."""
        start, size = ragged_places(offsets, mean)
        return cls(
            scale=scale,
            offsets=offsets,
            rating=rating.double(),
            mean=mean.double(),
            variance=None if variance is None else variance.double(),
            start=start,
            size=size,
            depth=int(offsets.diff().max()) if offsets.numel() > 1 else 0,
        )

    def __len__(self) -> int:
        return self.offsets.numel() - 1

    @cached_property
    def counts(self) -> Tensor:
        """int64 [T]: query pairs of each task."""
        return self.offsets.diff()

    @cached_property
    def owner(self) -> Tensor:
        """int64 [n]: the task of each query pair."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.offsets.device), self.counts)

    @cached_property
    def clipped(self) -> Tensor:
        """float64 [n]: the predictive means, clipped to the scale."""
        return self.scale.clip(self.mean)

    @cached_property
    def relevant(self) -> Tensor:
        """bool [n]: ratings at or above the scale's `relevant_from`."""
        return self.rating >= self.scale.relevant_from

    @cached_property
    def relevant_counts(self) -> Tensor:
        """float64 [T]: relevant query pairs of each task; NaN where there is none, so that what they divide is
        undefined.
        """
        count = self.task_sum(self.relevant.double())
        return torch.where(count > 0, count, torch.nan)

    @cached_property
    def ideal_position(self) -> Tensor:
        """int64 [n]: place of each query pair, from 0, when its task's pairs are put in order of rating."""
        order = torch.argsort(self.rating, descending=True, stable=True)
        order = order[torch.argsort(self.owner[order], stable=True)]
        position = torch.empty_like(order)
        position[order] = torch.arange(order.numel(), device=order.device) - self.offsets[self.owner]
        return position

    def task_sum(self, values: Tensor) -> Tensor:
        """float64 [T]: `values` [n] of the query pairs, summed over each task."""
        return values.new_zeros(len(self), dtype=torch.float64).index_add_(0, self.owner, values.double())

    def task_mean(self, values: Tensor) -> Tensor:
        """float64 [T]: `values` [n] of the query pairs, averaged over each task; NaN where it has none."""
        return self.task_sum(values) / self.counts

    def mean_over_places(self, values: Tensor) -> Tensor:
        """float64 [n]: what each query pair can expect of `values` [k], one per position, when ties fall in
        random order.

        It is as likely at any place of its group as at another, so this is the mean over them; positions
        beyond k hold 0 (McSherry & Najork 2008).
        """
        k = values.numel()
        total = torch.nn.functional.pad(values.double().cumsum(0), (1, 0))
        stop = (self.start + self.size).clamp(max=k)
        return (total[stop] - total[self.start.clamp(max=k)]) / self.size

    def chance_within(self, k: int) -> Tensor:
        """float64 [n]: chance of each query pair to be among the list's first k when ties fall in random order."""
        return self.mean_over_places(torch.ones(k, device=self.start.device))

    def relevant_groups(self, k: int) -> TieGroups:
        """The groups of tied partners that begin among the first k positions and have relevant ones."""
        inside = self.relevant & (self.start < k)
        cell = self.owner[inside] * k + self.start[inside]
        relevant = torch.bincount(cell, minlength=len(self) * k)
        size = torch.ones_like(relevant)
        size[cell] = self.size[inside]
        return TieGroups(relevant.double().view(-1, k), size.double().view(-1, k))

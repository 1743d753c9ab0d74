"""Tasks between tasks."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from metarec.data import Features
from metarec.tasks.task import EntityRows, Query, Ragged, Tasks


def mix(tasks: Tasks, other: Tensor, share: Tensor) -> Tasks:
    """Each task moved towards another of its batch.

    With λ a task's share, its entity gets the attributes ``λ a + (1 − λ) a'``, where a' are the other's. Its j-th
    support rating becomes ``λ r_j + (1 − λ) r'_j``, of a new partner with the attributes ``λ p_j + (1 − λ) p'_j``; its
    query likewise; and either is as long as the shorter of both. A task that is paired with itself stays as it is.

    Parameters
    ----------
    tasks : Tasks
    other : int64 [T]
        Which task each is paired with.
    share : float [T]
        λ.

    References
    ----------
    Yao, Zhang, Finn 2022. Meta-learning with fewer tasks through task interpolation, equation 5, for the inputs.
    """
    support, query, partners = tasks.support, tasks.query, tasks.support.partners
    entities = support.entities
    features = entities.features.mixed(entities.features.rows(other), share)
    count = len(partners)
    lists, rating, seen = _mixed(support, support.rating, partners, count, other, share)
    asked, truth, unseen = _mixed(query, tasks.rating, partners, count + len(seen), other, share)
    new = partners.rows.new_full((len(seen) + len(unseen),), -1)
    partners = EntityRows(torch.cat([partners.rows, new]), Features.stack([partners.features, seen, unseen]))
    return replace(
        tasks,
        support=replace(
            support,
            offsets=lists.offsets,
            partner=lists.partner,
            rating=rating,
            entities=replace(entities, features=features),
            partners=partners,
        ),
        query=Query(asked.offsets, asked.partner, partners),
        rating=truth,
    )


def _mixed(
    lists: Ragged, rating: Tensor, partners: EntityRows, first: int, other: Tensor, share: Tensor
) -> tuple[Ragged, Tensor, Features]:
    """The lists, their ratings, and the attributes of the partners that these name from `first` on."""
    counts = torch.minimum(lists.counts, lists.counts[other])
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    owner = torch.repeat_interleave(torch.arange(len(lists), device=other.device), counts)
    place = torch.arange(owner.numel(), device=other.device) - offsets[owner]
    mine, its = lists.offsets[owner] + place, lists.offsets[other[owner]] + place
    part = share[owner]
    changed = (owner != other[owner]).nonzero().flatten()
    partner = lists.partner[mine]
    between = partners.features.rows(partner[changed]).mixed(
        partners.features.rows(lists.partner[its[changed]]), part[changed]
    )
    partner = partner.index_copy(0, changed, first + torch.arange(len(changed), device=other.device))
    mixed = torch.where(owner == other[owner], rating[mine], part * rating[mine] + (1 - part) * rating[its])
    return Ragged(offsets, partner), mixed, between

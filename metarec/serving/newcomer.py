"""`Newcomer`: one new user or item, what was recommended to it, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from metarec.data import Side, partner_side
from metarec.errors import DataError
from metarec.learning import Adapted, Explainable, Updatable
from metarec.tasks import EntityRows, Query

if TYPE_CHECKING:
    from metarec.serving.catalogue import Catalogue
    from metarec.serving.recommender import Recommender


class Reason(NamedTuple):
    """What one of the newcomer's ratings adds to a score, in units of the rating."""

    title: str
    contribution: float


@dataclass(frozen=True)
class Recommendation:
    """One item recommended to a new user, or one user to a new item.

    Parameters
    ----------
    id : int or str
        What the data's source calls it.
    title : str
        What people call it.
    score : float
        The expected rating, within the scale.
    deviation : float, optional
        Standard deviation of the newcomer's rating around the score: its ±.
    unknown : float, optional
        The part of `deviation` that more ratings of the newcomer would remove, as a standard deviation too.
    because : tuple of Reason
        What each rating of the newcomer adds to the score, strongest first; empty where the algorithm cannot say.
    """

    id: int | str
    title: str
    score: float
    deviation: float | None = None
    unknown: float | None = None
    because: tuple[Reason, ...] = ()


@dataclass(frozen=True)
class Newcomer:
    """A new user or item that a recommender has adapted to; `Recommender.adapt` makes it.

    Parameters
    ----------
    recommender : Recommender
    side : "user" or "item"
    entity : EntityRows [1]
        Its encoded attributes.
    rated : mapping of partner row to rating
    adapted : Adapted
        What the algorithm made of both.
    """

    recommender: Recommender
    side: Side
    entity: EntityRows
    rated: Mapping[int, float]
    adapted: Adapted

    @property
    def partners(self) -> Catalogue:
        """What is recommended: the known entities of the other side."""
        return self.recommender.catalogue(partner_side(self.side))

    def recommend(self, k: int = 10) -> list[Recommendation]:
        """The `k` best of the known partners not rated, best first, ties by row.

        Best is the highest expected rating; or, by an algorithm that ranks by choice, what the newcomer is likeliest to
        choose, whatever rating is expected of it then.

        Raises
        ------
        DataError
            `k` is below 1 or above the number of those partners.
        """
        left = len(self.partners) - len(self.rated)
        if not 1 <= k <= left:
            known = f"{len(self.partners)} {self.partners.side}s known, {len(self.rated)} of them rated"
            raise DataError(f"k is {k}, expected 1 to {left}: {known}")
        rated = torch.tensor(list(self.rated), dtype=torch.int64, device=self.recommender.device)
        return self._described(self.recommender.best(self.side, self.adapted, k, excluded=rated))

    def rate(self, called: int | str, value: float) -> Newcomer:
        """The newcomer with one more rating, or with another one in place of an old one.

        Raises
        ------
        DataError
            An unknown or ambiguous name, or a rating off the scale.
        """
        row = self.partners.row(called)
        rating = self.recommender.check_rating(called, value)
        before = self.forget(called) if row in self.rated else self
        rated = {**before.rated, row: rating}
        algorithm = self.recommender.algorithm
        if isinstance(algorithm, Updatable):
            one = self.recommender.support(self.side, self.entity, {row: rating})
            return replace(before, rated=rated, adapted=algorithm.absorb(before.adapted, one))
        return before._adapted_to(rated)

    def forget(self, called: int | str) -> Newcomer:
        """The newcomer without one of its ratings.

        Raises
        ------
        DataError
            It has not rated this.
        """
        row = self.partners.row(called)
        if row not in self.rated:
            raise DataError(f"{self.partners.side} {called!r} has no rating to forget")
        rated = {other: rating for other, rating in self.rated.items() if other != row}
        algorithm = self.recommender.algorithm
        if isinstance(algorithm, Updatable):
            one = self.recommender.support(self.side, self.entity, {row: self.rated[row]})
            return replace(self, rated=rated, adapted=algorithm.forget(self.adapted, one))
        return self._adapted_to(rated)

    def _adapted_to(self, rated: Mapping[int, float]) -> Newcomer:
        support = self.recommender.support(self.side, self.entity, rated)
        return replace(self, rated=rated, adapted=self.recommender.algorithm.adapt(support))

    def _described(self, rows: Tensor) -> list[Recommendation]:
        known = self.partners
        offsets = torch.tensor([0, rows.numel()], device=rows.device)
        query = Query(offsets, rows, self.recommender.partners(self.side))
        prediction = self.recommender.algorithm.predict(self.adapted, query)
        unknown = None
        if prediction.variance is not None and prediction.noise is not None:
            unknown = prediction.variance - prediction.noise
        return [
            Recommendation(
                id=known.ids[row],
                title=known.names[row],
                score=score,
                deviation=sd,
                unknown=part,
                because=why,
            )
            for row, score, sd, part, why in zip(
                rows.tolist(),
                self.recommender.scale.clip(prediction.mean).tolist(),
                _deviations(prediction.variance, rows.numel()),
                _deviations(unknown, rows.numel()),
                self._reasons(query),
                strict=True,
            )
        ]

    def _reasons(self, query: Query) -> Sequence[tuple[Reason, ...]]:
        algorithm = self.recommender.algorithm
        if not isinstance(algorithm, Explainable):
            return [()] * query.partner.numel()
        support = self.recommender.support(self.side, self.entity, self.rated)
        explanation = algorithm.explain(self.adapted, support, query)
        contribution = explanation.contribution.tolist()
        titles = [self.partners.names[row] for row in self.rated]
        return [
            tuple(sorted(map(Reason, titles, part), key=lambda reason: -abs(reason.contribution)))
            for part in (contribution[start:stop] for start, stop in pairwise(explanation.offsets.tolist()))
        ]


def _deviations(variance: Tensor | None, count: int) -> list[float] | list[None]:
    if variance is None:
        return [None] * count
    return variance.clamp_min(0).sqrt().tolist()

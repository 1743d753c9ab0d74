"""A floor: what many chose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from metarec import hookimpl
from metarec.data import Dataset, Side, partner_side
from metarec.learning import Adapted, Algorithm, Prediction, Run, residual_variance
from metarec.tasks import EntityRows, Query, Support, Tasks


@dataclass(frozen=True)
class SideOnly(Adapted):
    """Popularity takes nothing from a support but its side."""

    side: Side


class Popularity(Algorithm):
    """Ranks items by how many training ratings they have; for item tasks, users by how many they gave.

    Implicit feedback: the score is the share of the known users (items) that chose the partner; 0 for a new one.

    Explicit ratings: the mean is the straight line ``a + b log(1 + count)`` that fits the training ratings best, and
    the variance is theirs around it. Where popular partners are not rated higher, b is as good as 0 but still
    positive, so that the order is always by count. Nothing is known of a new partner's popularity, so its mean is
    that of all ratings.
    """

    name = "popularity"
    is_floor = True

    def fit(self, train: Dataset, *, valid: Tasks | None = None, run: Run = Run()) -> Self:
        """Count; where ratings are explicit, fit a line for either kind of task."""
        self.implicit_ = train.scale.implicit
        self.score_, self.variance_, self.score_of_new_ = {}, {}, {}
        sides: tuple[Side, ...] = ("user", "item")
        for side in sides:
            row = train.rows(partner_side(side)).long()
            count = torch.bincount(row, minlength=len(train.entities(partner_side(side))))
            if self.implicit_:
                score, of_new = count.to(torch.float64) / len(train.entities(side)), 0.0
            else:
                popularity = count.to(torch.float64).log1p()
                intercept, slope = _line(popularity[row], train.rating.to(torch.float64))
                score, of_new = intercept + slope * popularity, float(train.rating.mean(dtype=torch.float64))
                self.variance_[side] = residual_variance(train.rating - score[row])
            self.score_[side] = score.to(run.device)
            self.score_of_new_[side] = of_new
        return self

    def adapt(self, support: Support) -> SideOnly:
        """Nothing of the ratings."""
        return SideOnly(support.side)

    def predict(self, adapted: Adapted, query: Query) -> Prediction:
        """The score of each partner, the same for all tasks."""
        assert isinstance(adapted, SideOnly)
        side = adapted.side
        dtype = query.partners.features.values.dtype
        mean = self._scores(side, query.partners).to(dtype)[query.partner]
        variance = torch.full_like(mean, self.variance_[side]) if side in self.variance_ else None
        return Prediction(mean, variance)

    def _scores(self, side: Side, partners: EntityRows) -> Tensor:
        known = self.score_[side][partners.rows.clamp(min=0)]
        return known.masked_fill(partners.rows < 0, self.score_of_new_[side])


def _line(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Intercept and slope of the least-squares line, the slope at least a thousandth of y's deviation."""
    dx, dy = x - x.mean(), y - y.mean()
    slope = float((dx * dy).sum() / dx.square().sum().clamp(min=1e-12))
    slope = max(slope, 1e-3 * max(float(dy.square().mean().sqrt()), 1e-3))
    return float(y.mean()) - slope * float(x.mean()), slope


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `Popularity`."""
    register(Popularity)

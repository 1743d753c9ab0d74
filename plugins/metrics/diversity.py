"""`diversity@k`: how unlike each other the recommended are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metarec import hookimpl
from metarec.data import Features
from metarec.evaluation import CatalogueMetric, Metric, Scored

_LISTS_AT_ONCE = 256  # whose summed features, as wide as the encoders make them, are held at a time


class Diversity(CatalogueMetric):
    """Mean cosine distance between the features of all pairs among the first k. Ties go to the lower row.

    With unit feature vectors u, ``1 − (‖Σu‖² − Σ‖u‖²) / (k (k − 1))``; a candidate without features is at
    distance 1 from all. Lists of fewer than two are left out.

    Parameters
    ----------
    k : int, default 5
        Length of the list.
    """

    name = "diversity"

    def score(self, scored: Scored) -> Tensor:
        """float64 [T]: each list's mean distance."""
        assert scored.top is not None
        assert scored.catalogue is not None
        parts = torch.split(scored.top[:, : self.k], _LISTS_AT_ONCE)
        return torch.cat([_mean_distance(part, scored.catalogue.features) for part in parts])


def _mean_distance(top: Tensor, features: Features) -> Tensor:
    listed = top >= 0
    count = listed.sum(dim=1).double()
    rows = features.rows(top[listed])
    of_list = torch.arange(len(top), device=top.device).repeat_interleave(listed.sum(dim=1))
    squares = torch.zeros(len(rows), dtype=torch.float64, device=top.device)
    squares.index_add_(0, rows.owner, rows.values.double().square())
    unit = rows.values.double() / squares.sqrt()[rows.owner].clamp(min=torch.finfo(torch.float64).tiny)
    total = torch.zeros(len(top), rows.width, dtype=torch.float64, device=top.device)
    total.index_put_((of_list[rows.owner], rows.columns), unit, accumulate=True)
    with_features = torch.zeros_like(count).index_add_(0, of_list, (squares > 0).double())
    similarity = (total.square().sum(dim=1) - with_features) / (count * (count - 1))
    return (1 - similarity).where(count > 1, float("nan"))


@hookimpl
def register_metrics(register: Callable[[type[Metric]], None]) -> None:
    """Register `Diversity`."""
    register(Diversity)

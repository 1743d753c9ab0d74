"""`coverage@k`: how much of the catalogue is ever recommended."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metarec import hookimpl
from metarec.evaluation import CatalogueMetric, Metric, Scored


class Coverage(CatalogueMetric):
    """Distinct candidates in the first k of all lists, over the candidates. Ties go to the lower row.

    A value of all lists together: no task has one of its own, and there is no interval.

    Parameters
    ----------
    k : int, default 5
        Length of the list.
    """

    name = "coverage"
    per_task = False

    def score(self, scored: Scored) -> Tensor:
        """float64 scalar: the share."""
        assert scored.top is not None
        assert scored.catalogue is not None
        named = torch.unique(scored.top[:, : self.k])
        return torch.count_nonzero(named >= 0).double() / len(scored.catalogue)


@hookimpl
def register_metrics(register: Callable[[type[Metric]], None]) -> None:
    """Register `Coverage`."""
    register(Coverage)

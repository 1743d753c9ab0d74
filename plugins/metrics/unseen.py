"""`unseen@k`: how many of the recommended the entity did not have before."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metarec import hookimpl
from metarec.evaluation import CatalogueMetric, Metric, Scored


class Unseen(CatalogueMetric):
    """Share of the first k that the entity had not met before. Ties go to the lower row.

    Of lists that do *not* leave out what it had met; the lists of all other metrics do, and would make this
    1.

    Parameters
    ----------
    k : int, default 5
        Length of the list.
    """

    name = "unseen"

    def score(self, scored: Scored) -> Tensor:
        """float64 [T]: each list's share."""
        assert scored.seen is not None
        return 1 - scored.seen[:, : self.k].to(torch.float64).mean(dim=1)


@hookimpl
def register_metrics(register: Callable[[type[Metric]], None]) -> None:
    """Register `Unseen`."""
    register(Unseen)

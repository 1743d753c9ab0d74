"""`novelty@k`: how little known the recommended are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metarec import hookimpl
from metarec.evaluation import CatalogueMetric, Metric, Scored


class Novelty(CatalogueMetric):
    """Mean self-information of the first k, in bits: ``−log₂((c + 1) / (N + 2))``. Ties go to the lower row.

    c of the N entities on the tasks' side in training interacted with the candidate; one is added to those
    who did and to those who did not, so that new candidates have a value too (after Zhou et al. 2010).

    Parameters
    ----------
    k : int, default 5
        Length of the list.
    """

    name = "novelty"

    def score(self, scored: Scored) -> Tensor:
        """float64 [T]: each list's mean; NaN where it is empty."""
        assert scored.top is not None
        assert scored.catalogue is not None
        top = scored.top[:, : self.k]
        share = (scored.catalogue.popularity.double() + 1) / (scored.catalogue.population + 2)
        information = -torch.log2(share)[top.clamp(min=0)]
        listed = top >= 0
        return (information * listed).sum(dim=1) / listed.sum(dim=1)


@hookimpl
def register_metrics(register: Callable[[type[Metric]], None]) -> None:
    """Register `Novelty`."""
    register(Novelty)

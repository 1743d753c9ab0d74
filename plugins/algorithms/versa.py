"""VERSA: a Gaussian for each task's head, read of the support in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from metarec import Algorithm, hookimpl
from metarec.learning import AmortisedHeadLearner, HeadReader, Told
from metarec.testing.oracles import amortised_head, law
from metarec.testing.oracles.check import Check


class Versa(AmortisedHeadLearner):
    """A Gaussian without correlations for each task's head, read of the support in one pass.

    With z the head in units of its prior, ``q(z | S) = N(μ, diag(1/p))``, with μ and p as `AmortisedHeadLearner` reads
    them.

    References
    ----------
    Gordon, Bronskill, Bauer, Nowozin, Turner 2019. Meta-learning probabilistic inference for prediction, equation 4.
    """

    name = "versa"

    def read(self, reader: HeadReader, told: Told) -> tuple[Tensor, Tensor]:
        """As told."""
        return told.mean, torch.diag_embed(told.precision.rsqrt())

    @classmethod
    def oracles(cls) -> Iterator[Check]:
        """The pass written out; what trains on a linear Gaussian law nears its exact posterior."""
        yield from amortised_head.written_out(cls, amortised_head.diagonal, steps=0)
        yield from law.checks(cls, {"size": 8, "rank": 4, "hidden": 16}, most=0.06)


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `Versa`."""
    register(Versa)

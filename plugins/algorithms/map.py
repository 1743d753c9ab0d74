"""MAP: the most likely head under a learnt prior."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metarec import Algorithm, Tasks, hookimpl
from metarec.learning import ModeLearner, PlacedHead
from metarec.tasks import Support


class MAP(ModeLearner):
    """The most likely head of each task under a learnt Gaussian prior, trained to predict the query.

    The few gradient steps of MAML from a shared start are, on a quadratic loss, the mode under a Gaussian prior at the
    start that early stopping implies. Here the mode is exact, and the prior's mean m(c) and its full covariance P⁻¹ are
    learnt with features and noise: they minimise ``−log p(r*|θ*(S))`` over tasks of every support size, by the exact
    derivative of the mode. It is a point estimate, and the variance is the noise alone. Where feedback is implicit,
    θᵀφ is the log odds of a choice.

    References
    ----------
    Grant, Finn, Levine, Darrell, Griffiths 2018. Recasting gradient-based meta-learning as hierarchical Bayes, section
    3.
    """

    name = "map"

    @torch.no_grad()
    def adapt(self, support: Support) -> PlacedHead:
        """The mode of each task's head."""
        return self.place(support)

    def place(self, support: Support) -> PlacedHead:
        """As `adapt`, differentiable in the network's weights."""
        found = self.posterior(support)
        return PlacedHead(found.prior, found.side, found.mean)

    def loss(self, tasks: Tasks) -> Tensor:
        """Mean negative log density of the query under the mode."""
        return self.loss_of(self.place(tasks.support), tasks)


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `MAP`."""
    register(MAP)

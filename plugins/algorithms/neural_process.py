"""The latent neural process: the mean of a support's tokens says what the task is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from metarec import Algorithm, Tasks, hookimpl
from metarec.learning import Baseline, EntityEmbedding, LatentLearner, LatentNetwork, Perceptron
from metarec.tasks import Ragged, Support


class NeuralProcess(LatentLearner):
    """The mean of a support's tokens says what the task is.

    A network makes a token of each rating, and another one of their mean and of the entity's attributes what the n
    ratings observe together, ``v = z + N(0, diag(1 / (n w)))``, so that

        q(z | S) = N(n w v / p, diag(1 / p)),   p = 1 + n w,

    which is the prior where there is none. It maximises, for the query Q_t of n_t ratings,

        Σ_t E log p(Q_t | z_t) − KL(q(z | S_t ∪ Q_t) ‖ q(z | S_t)),   z_t ~ q(z | S_t ∪ Q_t).

    References
    ----------
    Garnelo, Schwarz, Rosenbaum, Viola, Rezende, Eslami, Teh 2018. Neural processes, equation 9.
    Lin, Wu, Zhou, Pan, Cao, Wang 2021. Task-adaptive neural process for user cold-start recommendation, section 4.
    """

    name = "neural-process"

    def network(
        self, entity: EntityEmbedding, partner: EntityEmbedding, baseline: Baseline
    ) -> PoolingNetwork:
        """Tokens as wide as a hidden layer."""
        return PoolingNetwork(
            entity,
            partner,
            baseline,
            size=self.size,
            latent=self.latent,
            hidden=self.hidden,
            tokens=self.hidden,
            outputs=self.outputs,
        )

    def read(
        self, network: LatentNetwork, entity: Tensor, lists: Ragged, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """By the mean token."""
        assert isinstance(network, PoolingNetwork)
        count = lists.counts.to(tokens.dtype).unsqueeze(1)
        pooled = lists.sum(tokens) / count.clamp(min=1)
        value, weight = network.pooled(torch.cat([pooled, entity], 1)).chunk(2, 1)
        precision = 1 + count * softplus(weight)
        return value * (1 - 1 / precision), precision

    def loss(self, tasks: Tasks) -> Tensor:
        """The negative bound per rating of the query; when judged, `LatentLearner`'s, which sees no query."""
        if not self.network_.training:
            return super().loss(tasks)
        known = self.known(tasks)
        prior, posterior = self.posterior(tasks.support, known), self.posterior(_with_query(tasks), known)
        fit = self.log_density(self.decoded(posterior, tasks.query, tasks), tasks.rating).mean(0).sum()
        return (posterior.divergence(prior).sum() - fit) / tasks.rating.numel()


class PoolingNetwork(LatentNetwork):
    """`LatentNetwork`, and a network of the mean token."""

    def __init__(
        self, *arguments: Any, size: int, latent: int, hidden: int, tokens: int, outputs: int
    ) -> None:
        super().__init__(*arguments, size=size, latent=latent, hidden=hidden, tokens=tokens, outputs=outputs)
        self.pooled = Perceptron(tokens + size, hidden, 2 * latent)


def _with_query(tasks: Tasks) -> Support:
    """Support and query in one; in training both name the same partners."""
    support, query = tasks.support, tasks.query
    by_task = torch.cat([support.owner, query.owner]).argsort(stable=True)
    return replace(
        support,
        offsets=support.offsets + query.offsets,
        partner=torch.cat([support.partner, query.partner])[by_task],
        rating=torch.cat([support.rating, tasks.rating])[by_task],
    )


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `NeuralProcess`."""
    register(NeuralProcess)

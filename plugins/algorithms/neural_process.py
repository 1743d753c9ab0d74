"""The latent neural process: the mean of a support's tokens says what the task is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from metarec import Algorithm, hookimpl
from metarec.learning import Baseline, EntityEmbedding, LatentLearner, LatentNetwork, Perceptron
from metarec.tasks import Ragged
from metarec.testing.oracles import law
from metarec.testing.oracles.check import Check


class NeuralProcess(LatentLearner):
    """The mean of a support's tokens says what the task is.

    A network makes a token of each rating, and another one of their mean and of the entity's attributes what the n
    ratings observe together, ``v = z + N(0, diag(1 / (n w)))``, so that

        q(z | S) = N(n w v / p, diag(1 / p)),   p = 1 + n w,

    which is the prior where there is none. It minimises the bound of `LatentLearner`,

        −1/n Σ_t log 1/L Σ_l p(Q_t | z_tl),   z_tl ~ q(z | S_t),

    and not the papers' own, ``−E log p(Q | z) + KL(q(z | S ∪ Q) ‖ q(z | S))``: trained by that, q stayed at the prior
    whatever the support, on a linear Gaussian law too.

    References
    ----------
    Garnelo, Schwarz, Rosenbaum, Viola, Rezende, Eslami, Teh 2018. Neural processes.
    Foong, Bruinsma, Gordon, Dubois, Requeima, Turner 2020. Meta-learning stationary stochastic process prediction with
    convolutional neural processes, section 4: the bound.
    Lin, Wu, Zhou, Pan, Cao, Wang 2021. Task-adaptive neural process for user cold-start recommendation.
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

    @classmethod
    def oracles(cls) -> Iterator[Check]:
        """What trains on a linear Gaussian law nears its exact posterior."""
        yield from law.checks(cls, {"size": 8, "latent": 4, "hidden": 16}, most=0.35)


class PoolingNetwork(LatentNetwork):
    """`LatentNetwork`, and a network of the mean token."""

    def __init__(
        self, *arguments: Any, size: int, latent: int, hidden: int, tokens: int, outputs: int
    ) -> None:
        super().__init__(*arguments, size=size, latent=latent, hidden=hidden, tokens=tokens, outputs=outputs)
        self.pooled = Perceptron(tokens + size, hidden, 2 * latent)


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `NeuralProcess`."""
    register(NeuralProcess)

"""Collaborative filtering by cosine similarity, with learnt steps for new users and items."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from metarec import Algorithm, Range, hookimpl
from metarec.learning import Descent, FactorHead, FactorHeadLearner, PlacedHead, Training
from metarec.tasks import Sampling, Support


class MetaCF(FactorHeadLearner):
    """``r = a cos(u, v) + b + b_u + b_v``, and a new entity's vector by a few learnt gradient steps on its support.

    **Known entities** get vectors, biases, scale a and bias b by descent on the ratings, as `factorise` does, with a
    falling learning rate, a penalty, and held-out ratings to stop by.

    **New ones** of either side begin at a vector and bias of their attributes, ``θ₀ = m(c)``, learnt from the average
    of the known ones on, and take K steps with the other side fixed,

        θ ← θ − α ∘ Σ_j ∇ℓ_j(θ) / (n + c),   |u| ← √a after each,

    where ℓ is half the squared error, or the log loss of choices. The rates α, one for each number of θ, and the weight
    c of the start, in ratings, are learnt with θ₀ so that the adapted entity predicts its query best. The length of u
    stays, so that what turns it is the gradient of the cosine. Variance is that of the noise.

    Parameters
    ----------
    size : int, default 32
        Numbers in an embedding of the attributes.
    inner_steps : int, default 10
        Steps K.
    descent : Descent
        How the known entities get their vectors; by default of rank 64.
    training : Training
        How θ₀, α and c are trained.
    sampling : Sampling
        How training tasks are drawn.

    References
    ----------
    Li, Zhou, Chen, Li 2017. Meta-SGD: learning to learn quickly for few-shot learning (learnt start and rates).
    """

    name = "meta-cf"
    similarity = "cosine"

    def __init__(
        self,
        *,
        size: Annotated[int, Range(1, 4096)] = 32,
        inner_steps: Annotated[int, Range(0, 1000)] = 10,
        descent: Descent = Descent(rank=64, learning_rate=0.01, l2=0.02),
        training: Training = Training(epochs=15),
        sampling: Sampling = Sampling(),
    ) -> None:
        self.size = size
        self.inner_steps = inner_steps
        self.descent = descent
        self.training = training
        self.sampling = sampling

    def adapter(self, head: FactorHead) -> nn.Module:
        """Logarithms of the rates and of the weight of the start."""
        return nn.ParameterDict(
            {"log_rate": torch.zeros_like(head.start), "log_prior_ratings": head.start.new_tensor(2.0)}
        )

    def place(self, support: Support) -> PlacedHead:
        """θ after the steps."""
        head = self.factor_head(support.side)
        learnt = cast(nn.ParameterDict, head.adapter)
        placed = self.prior_head(support)
        length = torch.linalg.vector_norm(head.table[0, 1:])
        counts = support.counts.to(placed.placed.dtype)
        weight = learnt["log_rate"].exp() / (counts + learnt["log_prior_ratings"].exp()).unsqueeze(1)
        placed = self.moved(placed, _turned(placed.placed, length))
        for _ in range(self.inner_steps):
            step = weight * self.gradient(placed, support)
            placed = self.moved(placed, _turned(placed.placed - step, length))
        return placed


def _turned(heads: Tensor, length: Tensor) -> Tensor:
    """The same with the factors at a length."""
    return torch.cat([heads[:, :1], length * normalize(heads[:, 1:-1], dim=1), heads[:, -1:]], 1)


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `MetaCF`."""
    register(MetaCF)

"""Meta-SGD: MAML that learns how far each parameter goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from torch import nn

from metarec import Algorithm, hookimpl
from metarec.data import Side
from metarec.learning import GradientMetaLearner, Sizes, Towers
from metarec.ops import InnerSteps


class MetaSGD(GradientMetaLearner):
    """MAML that learns how far each parameter goes.

    Every step is ``φ ← φ − α ρ ∘ ∇L_S(φ)``: the factors ρ, one for each parameter of a side's head, start at 1 and are
    trained with θ, through the steps. A negative factor turns a step round.

    References
    ----------
    Li, Zhou, Chen, Li 2017. Meta-SGD: Learning to learn quickly for few-shot learning, algorithm 1.
    """

    name = "meta-sgd"

    def build(self, sizes: Sizes) -> Towers:
        """The embeddings and the heads, and a factor for each parameter of these."""
        towers = super().build(sizes)
        sides: tuple[Side, ...] = ("user", "item")
        towers.factors = nn.ModuleDict(
            {
                side: nn.ParameterList(torch.ones_like(part) for pair in towers.layers(side) for part in pair)
                for side in sides
            }
        )
        return towers

    def steps(self, side: Side) -> InnerSteps:
        """Steps whose rates are the learnt ones."""
        factors = list(cast(nn.ModuleDict, self.towers.factors)[side].parameters())
        pairs = list(zip(factors[::2], factors[1::2], strict=True))
        return replace(super().steps(side), parameter_rates=pairs)


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `MetaSGD`."""
    register(MetaSGD)

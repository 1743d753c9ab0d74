"""A transformer neural process: one pass over a support, in context, instead of any step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Self, cast

import torch
from torch import Tensor, nn

from metarec import Adapted, Algorithm, Prediction, Query, Range, Support, Tasks, hookimpl
from metarec.data import Side
from metarec.learning import (
    AmortisedLearner,
    Baseline,
    EntityEmbedding,
    TaskNetwork,
    Tokens,
    Training,
    silent,
)
from metarec.learning.attention import InContext, Places
from metarec.tasks import Ragged
from metarec.testing.oracles import law
from metarec.testing.oracles.check import Check


@dataclass(frozen=True)
class Remembered:
    """What a query may attend to of each support rating.

    Parameters
    ----------
    lists : Ragged
        The tasks' supports.
    rows : float [n, c]
        Keys and values in every layer.
    """

    lists: Ragged
    rows: Tensor

    def select(self, tasks: Tensor) -> Self:
        """Those of these tasks (int64 [M]), in that order."""
        return type(self)(self.lists.select(tasks), self.rows[self.lists.entries(tasks)[1]])

    def to(self, device: torch.device | str | None = None) -> Self:
        """The same on `device`."""
        lists = Ragged(self.lists.offsets.to(device), self.lists.partner.to(device))
        return type(self)(lists, self.rows.to(device))


@dataclass(frozen=True)
class Context(Adapted):
    """What a query may attend to of each task, and the posterior of the entity's bias.

    Parameters
    ----------
    entity : float [T, size]
        The task's entity by its attributes.
    head : float [T, c]
        Keys and values of the entity's token, in every layer.
    ratings : Remembered
    bias, variance : float [T, 1]
        Of the entity, standardised.
    side : "user" or "item"
    """

    entity: Tensor
    head: Tensor
    ratings: Remembered
    bias: Tensor
    variance: Tensor
    side: Side


class ReadingNetwork(TaskNetwork):
    """What the tasks of one side share: tokens of the entity, the ratings and the query, and the layers."""

    def __init__(self, *parts: Any, size: int, width: int, layers: int, heads: int, outputs: int) -> None:
        super().__init__(*parts)
        self.head = nn.Linear(size, width)
        self.tokens = Tokens(size + 1, width, width)
        self.asked = nn.Linear(size + 1, width)
        self.layers = InContext(width, heads, layers)
        self.last = nn.Sequential(nn.LayerNorm(width), silent(nn.Linear(width, outputs)))


class Transformer(AmortisedLearner):
    """A transformer reads the support once, in context, and the query attends to it.

    Tokens are the entity by its attributes, each support rating with its partner, and each query partner. Layers of
    attention let the support's tokens see one another, and a query token those of the support, but no query token
    another: so ``p(r*|S)`` of a pair is the same, whatever else is asked, the order of the support does not matter, and
    the support's keys and values are computed once, by `adapt`. What comes from the last layer is added to the mean and
    the log variance that the biases give. It minimises the negative log density of the query.

    Parameters
    ----------
    layers : int, default 2
        Layers of attention.
    heads : int, default 4
        Heads in each.
    head_width : int, default 8
        Numbers in a head; a token has ``heads × head_width``.
    training : Training
        As in `AmortisedLearner`, with a `learning_rate` of 0.003: at higher ones attention does not form.

    References
    ----------
    Nguyen, Grover 2022. Transformer neural processes: uncertainty-aware meta learning via sequence modeling (TNP-D).
    Shazeer 2020. GLU variants improve transformer.
    """

    name = "transformer"

    def __init__(
        self,
        *,
        layers: Annotated[int, Range(1, 64)] = 2,
        heads: Annotated[int, Range(1, 64)] = 4,
        head_width: Annotated[int, Range(1, 1024)] = 8,
        training: Training = Training(epochs=10, optimizer="adamw", learning_rate=0.003, l2=0.1),
        **options: Any,
    ) -> None:
        super().__init__(training=training, **options)
        self.layers = layers
        self.heads = heads
        self.head_width = head_width

    def network(
        self, entity: EntityEmbedding, partner: EntityEmbedding, baseline: Baseline
    ) -> ReadingNetwork:
        """Tokens and layers."""
        width = self.heads * self.head_width
        sizes = {"size": self.size, "width": width, "layers": self.layers, "heads": self.heads}
        return ReadingNetwork(entity, partner, baseline, **sizes, outputs=self.outputs)

    @classmethod
    def oracles(cls) -> Iterator[Check]:
        """What trains on a linear Gaussian law nears its exact posterior."""
        small = {"size": 8, "layers": 2, "heads": 2, "head_width": 8}
        yield from law.checks(cls, small, most=0.15)

    def loss(self, tasks: Tasks) -> Tensor:
        """Mean negative log density of the query, or its cross-entropy."""
        outputs = self.decoded(self.context(tasks.support, self.known(tasks)), tasks.query, tasks)
        return -self.log_density(outputs, tasks.rating).mean()

    @torch.no_grad()
    def adapt(self, support: Support) -> Context:
        """The keys and values that a query may attend to."""
        return self.context(support)

    @torch.no_grad()
    def predict(self, adapted: Adapted, query: Query) -> Prediction:
        """Mean and variance of each pair."""
        assert isinstance(adapted, Context)
        return self.mixture(self.decoded(adapted, query))

    def context(self, support: Support, known: Tensor | None = None) -> Context:
        """As `adapt`, differentiable in the network's weights; of `known` entities (int64 [T]) in training."""
        network = self.side(support.side)
        entity, rating = network.entities(support.entities), self.standardised(support.rating)
        seen = network.partners(support, support.partners, rating, known)
        surprise = rating - seen.expected
        rows = torch.cat([network.head(entity), network.tokens(seen.vectors, surprise, seen.place)])
        memory = network.layers.read(rows, Places(support, first=1))
        mean, precision = network.level(support, surprise, seen)
        deviation = network.baseline.prior_deviation
        return Context(
            entity=entity,
            head=memory[: len(support)],
            ratings=Remembered(Ragged(support.offsets, support.partner), memory[len(support) :]),
            bias=deviation * mean,
            variance=deviation**2 / precision,
            side=support.side,
        )

    def decoded(self, context: Context, query: Query, tasks: Tasks | None = None) -> Tensor:
        """float [1, n, k]: mean and log variance, or log odds, of the query, in training that of `tasks`."""
        network, owner = self.side(context.side), query.owner
        seen = self.asked(network, query, tasks)
        rows = network.asked(seen.vectors).index_select(0, seen.place)
        rows = rows + network.head(context.entity).index_select(0, owner)
        memory = torch.cat([context.head, context.ratings.rows])
        rows = network.layers.ask(rows, Places(query), memory, Places(context.ratings.lists, first=1))
        mean = seen.expected + context.bias.squeeze(1).index_select(0, owner)
        variance = seen.noise + context.variance.squeeze(1).index_select(0, owner)
        base = torch.stack([mean, variance.log()], 1)[:, : self.outputs]
        added: Tensor = network.last(rows)
        return (base + added).unsqueeze(0)

    def side(self, side: Side) -> ReadingNetwork:
        """What the tasks of a side share."""
        return cast(ReadingNetwork, cast(nn.ModuleDict, self.network_)[side])


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `Transformer`."""
    register(Transformer)

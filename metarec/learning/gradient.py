"""Learners whose shared weights are a starting point, from which a few gradient steps lead to each task's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, gaussian_nll_loss, mse_loss

from metarec.data import SIDES, Side, partner_side
from metarec.learning.abilities import Explanation, leave_one_out
from metarec.learning.algorithm import Adapted, Prediction
from metarec.learning.biases import Baseline
from metarec.learning.embedding import EntityEmbedding
from metarec.learning.neural import NeuralAlgorithm, Sizes, distinct, silent
from metarec.learning.training import Training
from metarec.ops import (
    InnerHead,
    InnerLoopState,
    InnerSteps,
    inner_loop,
    inner_loop_predict,
    inner_loop_state,
)
from metarec.options import Range
from metarec.tasks import EntityRows, Query, Ragged, Support, Tasks


@dataclass(frozen=True)
class Steps:
    """What the steps of a batch of tasks leave of each support rating.

    Parameters
    ----------
    lists : Ragged
        The tasks' supports.
    rows : float [n, inputs]
    coefficients : float [n, outputs]
        As in `InnerLoopState`; both are empty where the learner has a rate for each parameter.
    """

    lists: Ragged
    rows: Tensor
    coefficients: Tensor

    def select(self, tasks: Tensor) -> Self:
        """Those of these tasks (int64 [M]), in that order."""
        entry = self.lists.entries(tasks)[1]
        rows, coefficients = (
            part[entry] if part.numel() else part for part in (self.rows, self.coefficients)
        )
        return type(self)(self.lists.select(tasks), rows, coefficients)

    def to(self, device: torch.device | str | None = None) -> Self:
        """The same on `device`."""
        lists = Ragged(self.lists.offsets.to(device), self.lists.partner.to(device))
        return type(self)(lists, self.rows.to(device), self.coefficients.to(device))


@dataclass(frozen=True)
class AdaptedHeads(Adapted):
    """A head for each task.

    Parameters
    ----------
    entity : float [T, size]
        Embedding of the task's entity.
    steps : Steps
        How its first layer that adapts differs from the shared one.
    parameters : float [T, p]
        The other parameters that adapt, as in `InnerLoopState`.
    side : "user" or "item"
    """

    entity: Tensor
    steps: Steps
    parameters: Tensor
    side: Side


class Towers(nn.Module):
    """Embeddings of both sides, and for the tasks of each side a head that predicts from them.

    A head sees ``[e, p, e ∘ p, b]``: the embedding of the task's entity, that of a partner, their product, and what the
    baseline expects of the partner. It starts by giving b back.

    Parameters
    ----------
    sizes : Sizes
    baselines : mapping of side to Baseline
    size : int
        Numbers in an embedding.
    hidden : sequence of int
        Widths of a head's hidden layers.
    outputs : int
        1, or 2 for a mean and a log variance.
    identity : bool
        Whether known entities have embeddings of their own beside those of their attributes.
    dropout : float
        Share of the features that are left out in training.
    """

    def __init__(
        self,
        sizes: Sizes,
        baselines: Mapping[str, Baseline],
        size: int,
        hidden: Sequence[int],
        outputs: int,
        *,
        identity: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        entities = {
            "user": (sizes.users, sizes.user_columns),
            "item": (sizes.items, sizes.item_columns),
        }
        self.embeddings = nn.ModuleDict(
            {
                side: EntityEmbedding(count, columns, size, identity=identity, dropout=dropout)
                for side, (count, columns) in entities.items()
            }
        )
        self.baselines = nn.ModuleDict(baselines)
        widths = [3 * size + 1, *hidden, outputs]
        heads = {side: [nn.Linear(a, b) for a, b in pairwise(widths)] for side in entities}
        for layers in heads.values():
            _give_back(layers)
        self.heads = nn.ModuleDict({side: nn.ModuleList(layers) for side, layers in heads.items()})

    def entities(self, side: Side, entities: EntityRows) -> Tensor:
        """float [T, size]: embeddings of a side's entities."""
        vectors: Tensor = self.embeddings[side](entities)
        return vectors

    def inputs(self, side: Side, entity: Tensor, lists: Ragged, partners: EntityRows) -> Tensor:
        """float [n, 3 size + 1]: what the head sees of each entry of `lists`, where `entity` is [T, size]."""
        named, place = distinct(lists.partner)
        chosen = partners.select(named)
        partner = self.entities(partner_side(side), chosen).index_select(0, place)
        bias = self.baselines[side](chosen.rows)[0].index_select(0, place)
        own = entity.index_select(0, lists.owner)
        return torch.cat([own, partner, own * partner, bias.unsqueeze(1)], 1)

    def layers(self, side: Side) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each layer of a side's head."""
        layers = cast(Sequence[nn.Linear], self.heads[side])
        return [(layer.weight, layer.bias) for layer in layers]


@torch.no_grad()
def _give_back(layers: Sequence[nn.Linear]) -> None:
    """Let a network start by giving its last input for its first output, and 0 for the others.

    Two units of each hidden layer carry the input: what is positive of it, and what is negative.
    """
    *hidden, last = layers
    if any(layer.out_features < 2 for layer in hidden):
        return
    reads = torch.eye(layers[0].in_features)[-1]
    for layer in hidden:
        layer.weight[:2] = torch.stack([reads, -reads])
        layer.bias[:2] = 0
        first, second, *_ = torch.eye(layer.out_features)
        reads = first - second
    silent(last).weight[0] = reads


class GradientMetaLearner(NeuralAlgorithm):
    """Base of learners that adapt by gradient steps.

    The head of a side's tasks, a network h, predicts the standardised rating of partner p by an entity with attributes
    a from their embeddings and the partner's bias, ``h([e(a), e(p), e(a) ∘ e(p), b_p])``, and starts by giving b_p
    back. Every task starts from the parameters θ that all share, and takes K steps of rate α on its support of n
    ratings,

        φ ← φ − α ∇L_S(φ),   L_S = Σ_j ℓ_j / (n + c),

    so that a few ratings move it less than many do; θ and the embeddings minimise the loss of the query that the
    adapted φ leave. That loss is half the squared error in the steps and the squared error outside; where feedback is
    implicit, the cross-entropy; with `uncertainty`, the negative log density.

    A variant sets the attributes, or overrides `steps` or `backward`.

    Attributes
    ----------
    order : 1 or 2
        Whether the gradients within the steps are taken for constants (1) or differentiated too (2, the default).
    adapt_layers : "all" or "last"
        Which layers of the head take steps, default all.
    identity : bool
        Whether known entities have embeddings beside those of their attributes, default True.
    trains_by : "query", "displacement" or "optimum"
        What moves the starting point: the gradient of the query's loss through the steps, where the steps lead, or that
        gradient through the optimum that the steps approach.

    Parameters
    ----------
    size : int, default 32
        Numbers in an embedding of a user or an item.
    hidden : list of up to two int, default 64 and 64
        Widths of the head's hidden layers.
    inner_steps : int, default 5
        Steps K.
    inner_rate : float, default 0.2
        Their rate α.
    prior_ratings : float, default 10
        What the starting point weighs in a support, in ratings, c; 0 is the published rule.
    dropout : float, default 0
        Share of the features of users and items that are left out in training.
    uncertainty : bool, default False
        Whether the head gives a variance too, where feedback is explicit.
    training : Training
        How the weights are trained, by default for 10 epochs with "adamw" and an `l2` of 0.1.
    """

    order: ClassVar[Literal[1, 2]] = 2
    adapt_layers: ClassVar[Literal["all", "last"]] = "all"
    identity: ClassVar[bool] = True
    trains_by: ClassVar[Literal["query", "displacement", "optimum"]] = "query"

    def __init__(
        self,
        *,
        size: Annotated[int, Range(1, 4096)] = 32,
        hidden: Annotated[tuple[Annotated[int, Range(1, 4096)], ...], Field(max_length=2)] = (64, 64),
        inner_steps: Annotated[int, Range(0, 1000)] = 5,
        inner_rate: Annotated[float, Range(0.0, 10.0)] = 0.2,
        prior_ratings: Annotated[float, Range(0.0, 1e6)] = 10.0,
        dropout: Annotated[float, Range(0.0, 0.9)] = 0.0,
        uncertainty: bool = False,
        training: Training = Training(epochs=10, optimizer="adamw", l2=0.1),
        **options: Any,
    ) -> None:
        super().__init__(training=training, **options)
        self.size = size
        self.hidden = hidden
        self.inner_steps = inner_steps
        self.inner_rate = inner_rate
        self.prior_ratings = prior_ratings
        self.dropout = dropout
        self.uncertainty = uncertainty

    def build(self, sizes: Sizes) -> Towers:
        """The embeddings and the heads."""
        return Towers(
            sizes,
            {side: self.baseline(side) for side in SIDES},
            self.size,
            self.hidden,
            self._outputs,
            identity=self.identity,
            dropout=self.dropout,
        )

    def head(self, side: Side) -> InnerHead:
        """What the tasks of a side start from."""
        loss: Literal["squared", "logistic", "gaussian"] = "gaussian" if self._outputs == 2 else "squared"
        return InnerHead(
            self.towers.layers(side), "relu", "logistic" if self.implicit_ else loss, self.adapt_layers
        )

    def steps(self, side: Side) -> InnerSteps:
        """The steps that the tasks of a side take."""
        return InnerSteps(self.inner_steps, self.inner_rate, reduction="sum")

    def weights(self, lists: Ragged) -> Tensor:
        """float [n]: weight of each rating that the steps see, ``1 / (n + c)`` of its task."""
        counts = lists.counts.to(next(self.network_.parameters()).dtype)
        return (1 / (counts + self.prior_ratings))[lists.owner]

    def loss(self, tasks: Tasks) -> Tensor:
        """Mean loss of the query under the adapted heads."""
        support, query, side = tasks.support, tasks.query, tasks.support.side
        entity = self.towers.entities(side, support.entities)
        output = inner_loop(
            self.head(side),
            self.steps(side),
            self.towers.inputs(side, entity, support, support.partners),
            self.standardised(support.rating),
            support.offsets,
            self.towers.inputs(side, entity, query, query.partners),
            query.offsets,
            weights=self.weights(support),
            order=self.order,
        )
        return self.query_loss(output, tasks.rating)

    def query_loss(self, output: Tensor, rating: Tensor) -> Tensor:
        """Mean loss of outputs of a head."""
        target = self.standardised(rating)
        if self.implicit_:
            return binary_cross_entropy_with_logits(output, target)
        if self.uncertainty:
            return gaussian_nll_loss(output[:, 0], target, output[:, 1].exp(), full=True)
        return mse_loss(output, target)

    @torch.no_grad()
    def adapt(self, support: Support) -> AdaptedHeads:
        """The head of each task after its steps."""
        side = support.side
        entity = self.towers.entities(side, support.entities)
        inputs = self.towers.inputs(side, entity, support, support.partners)
        rating = self.standardised(support.rating)
        state = inner_loop_state(
            self.head(side),
            self.steps(side),
            inputs,
            rating,
            support.offsets,
            weights=self.weights(support),
        )
        steps = Steps(Ragged(support.offsets, support.partner), state.rows, state.coefficients)
        return AdaptedHeads(entity, steps, state.parameters, side)

    @torch.no_grad()
    def predict(self, adapted: Adapted, query: Query) -> Prediction:
        """What each task's head says of its query; for implicit feedback the log odds."""
        assert isinstance(adapted, AdaptedHeads)
        side, steps = adapted.side, adapted.steps
        inputs = self.towers.inputs(side, adapted.entity, query, query.partners)
        state = InnerLoopState(steps.rows, steps.coefficients, adapted.parameters)
        output = inner_loop_predict(self.head(side), state, steps.lists.offsets, inputs, query.offsets)
        if self._outputs == 1:
            return Prediction(self.rated(output))
        return Prediction(self.rated(output[:, 0]), self.deviation_**2 * output[:, 1].exp())

    def explain(self, adapted: Adapted, support: Support, query: Query) -> Explanation:
        """The mean less what the steps on the rest of the support make of it."""
        return leave_one_out(self, adapted, support, query)

    @property
    def towers(self) -> Towers:
        """The network."""
        return cast(Towers, self.network_)

    @property
    def _outputs(self) -> int:
        return 2 if self.uncertainty and not self.implicit_ else 1

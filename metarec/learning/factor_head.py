"""Learners that find a new entity's place among the factors of a factorisation that is fitted first."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from metarec.data import SIDES, Dataset, Side, partner_side
from metarec.learning.embedding import EntityEmbedding
from metarec.learning.factorisation import Descent, Similarity, factorise
from metarec.learning.linear_head import AdaptedHead, LinearHead, LinearHeadLearner
from metarec.learning.neural import Perceptron, Sizes, silent
from metarec.learning.run import Run
from metarec.learning.training import Training
from metarec.options import Range
from metarec.tasks import EntityRows, Sampling, Support, Tasks


class FactorHead(LinearHead):
    """What the tasks of one side share: φ = (bias, factors, 1) of a partner, from the factorisation where it is known.

    A new partner's bias and factors are a network of its attributes, which begins at the average of the known ones. So
    does the prior mean of θ = (1, factors, bias), and its covariance at theirs.

    Parameters
    ----------
    entity, partner : EntityEmbedding
        Of the attributes of the tasks' entities, and of those of the partners.
    size : int
        Numbers in an embedding.
    own, other : float [N, 1 + rank]
        Biases and factors of the known entities of the tasks' side, and of the other.
    offset : float
    """

    table: Tensor
    average: Tensor
    start: Tensor

    def __init__(
        self,
        entity: EntityEmbedding,
        partner: EntityEmbedding,
        size: int,
        own: Tensor,
        other: Tensor,
        offset: float,
    ) -> None:
        super().__init__(entity, partner, size, other.shape[1] + 1)
        self.register_buffer("table", other, persistent=False)
        self.register_buffer("average", other.mean(0), persistent=False)
        heads = torch.cat([torch.ones_like(own[:, :1]), own[:, 1:], own[:, :1] + offset], 1)
        self.register_buffer("start", heads.mean(0), persistent=False)
        self.project = Perceptron(size, 2 * size, other.shape[1])
        silent(self.project.last)
        silent(self.prior.last)
        with torch.no_grad():
            spread = heads.double().T.cov(correction=0) + 0.01 * torch.eye(heads.shape[1])
            factor = torch.linalg.cholesky(torch.linalg.inv(spread)).to(self.lower)
            self.lower.copy_(factor)
            self.log_deviation.copy_(-factor.diagonal().log())
        self.adapter: nn.Module = nn.Identity()

    def features(self, partners: EntityRows) -> tuple[Tensor, Tensor]:
        vectors = self.partner(partners)
        is_new = partners.rows < 0
        new = is_new.nonzero().flatten()
        placed = self.table.index_select(0, partners.rows.clamp(min=0))
        placed = placed.index_copy(0, new, self.average + self.project(vectors.index_select(0, new)))
        log_noise = self.log_noise(vectors).squeeze(1) + is_new.to(vectors.dtype) * self.log_noise_of_new
        return torch.cat([placed, placed.new_ones(len(partners), 1)], 1), log_noise.exp()

    def prior_mean(self, entities: EntityRows) -> Tensor:
        return self.start + super().prior_mean(entities)


@dataclass(frozen=True)
class PlacedHead(AdaptedHead):
    """Each task's head, of which no uncertainty is known.

    Parameters
    ----------
    placed : float [T, r]
        θ.
    """

    placed: Tensor

    def mean_head(self) -> Tensor:
        return self.placed

    def unknown(self, features: Tensor, owner: Tensor) -> Tensor:
        return torch.zeros_like(features[:, 0])

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        return self.placed.expand(count, *self.placed.shape)


class FactorHeadLearner(LinearHeadLearner):
    """Base of learners that place a new entity among factors.

    First `factorise` gives the known entities biases and factors, which then stay. A standardised rating of partner p
    by the task's entity is ``θᵀφ(p)`` plus noise, φ = (b_p, v_p, 1); where feedback is implicit, these are the log odds
    of a choice. Then networks of attributes, and how a support moves θ, are trained to predict the query of known
    entities that are taken for new: by its negative log density, or the cross-entropy of choices and partners drawn.

    A subclass says in `place` how a support moves θ, with the weights that `adapter` makes for each side.

    Parameters
    ----------
    size : int, default 32
        Numbers in an embedding of the attributes.
    descent : Descent
        How the known entities get their factors.
    training : Training
        How the networks are trained, by default for 15 epochs.
    sampling : Sampling
        How training tasks are drawn.

    Attributes
    ----------
    similarity : "dot" or "cosine"
        Of the factorisation.
    """

    similarity: ClassVar[Similarity] = "dot"

    def __init__(
        self,
        *,
        size: Annotated[int, Range(1, 4096)] = 32,
        descent: Descent = Descent(),
        training: Training = Training(epochs=15),
        sampling: Sampling = Sampling(),
    ) -> None:
        # How many factors there are, `descent` says: the rank that a linear head has by itself is no option here.
        self.size = size
        self.descent = descent
        self.training = training
        self.sampling = sampling

    def fit(self, train: Dataset, *, valid: Tasks | None = None, run: Run = Run()) -> Self:
        """Fit the factorisation, then what places newcomers in it."""
        found = factorise(train, self.descent, self.similarity, run=run, negatives=self.sampling.negatives)
        self.factors_ = {"user": found.user, "item": found.item}
        self.offset_ = found.offset
        return super().fit(train, valid=valid, run=run)

    def build(self, sizes: Sizes) -> nn.Module:
        """A head for each side."""
        content = {
            "user": EntityEmbedding(sizes.users, sizes.user_columns, self.size, identity=False),
            "item": EntityEmbedding(sizes.items, sizes.item_columns, self.size, identity=False),
        }
        heads = nn.ModuleDict()
        for side in SIDES:
            other = partner_side(side)
            own_rows, other_rows = self.factors_[side].cpu(), self.factors_[other].cpu()
            head = FactorHead(content[side], content[other], self.size, own_rows, other_rows, self.offset_)
            head.adapter = self.adapter(head)
            heads[side] = head
        return heads

    def adapter(self, head: FactorHead) -> nn.Module:
        """What else is learnt of how a support moves θ; by default nothing."""
        return nn.Identity()

    @abstractmethod
    def place(self, support: Support) -> AdaptedHead:
        """θ of each task, differentiable in the network's weights."""

    @torch.no_grad()
    def adapt(self, support: Support) -> AdaptedHead:
        """θ of each task."""
        return self.place(support)

    def loss(self, tasks: Tasks) -> Tensor:
        """Mean negative log density of the query, or its cross-entropy."""
        return self.loss_of(self.place(tasks.support), tasks)

    def factor_head(self, side: Side) -> FactorHead:
        """What the tasks of a side share."""
        return cast(FactorHead, self.head(side))

    def content(self, support: Support) -> Tensor:
        """float [T, r]: θ before the first rating, what the attributes say of it."""
        return self.head(support.side).prior_mean(support.entities)

    def slope(self, support: Support) -> Callable[[Tensor], Tensor]:
        """The gradient in θ of the sum of half the squared errors of each task's support, or of its log losses.

        It is a function of θ, both float [T, r]; the features of the support are found once for all its calls.
        """
        features, _ = self.features(support.side, support, support.partners)
        target, owner = self.standardised(support.rating), support.owner

        def at(heads: Tensor) -> Tensor:
            output = (heads.index_select(0, owner) * features).sum(1)
            expected = torch.sigmoid(output) if self.implicit_ else output
            return support.sum((expected - target).unsqueeze(1) * features)

        return at

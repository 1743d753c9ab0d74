"""Learners that read a support once: a network says what it tells of the task, without a step at adaptation."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from metarec.data import Side
from metarec.learning.abilities import Explanation, leave_one_out
from metarec.learning.algorithm import Adapted, Prediction
from metarec.learning.biases import Baseline
from metarec.learning.embedding import EntityEmbedding
from metarec.learning.neural import NeuralAlgorithm, Perceptron, Sizes, distinct, silent
from metarec.learning.training import Training
from metarec.options import Range
from metarec.tasks import EntityRows, Query, Ragged, Support, Tasks


class Seen(NamedTuple):
    """The partners in some lists.

    Parameters
    ----------
    vectors : float [m, size + 1]
        Embeddings of the m different ones, normalised, the last number 1 where new.
    place : int64 [n]
        Each entry's among them.
    expected, noise : float [n]
        Of each entry: what the baseline expects of an entity without a bias, and the variance around an entity's.
    """

    vectors: Tensor
    place: Tensor
    expected: Tensor
    noise: Tensor


class TaskNetwork(nn.Module):
    """What the tasks of one side share.

    Parameters
    ----------
    entity, partner : EntityEmbedding
        Of the tasks' entities and of their partners.
    baseline : Baseline
    """

    def __init__(self, entity: EntityEmbedding, partner: EntityEmbedding, baseline: Baseline) -> None:
        super().__init__()
        self.entity, self.partner, self.baseline = entity, partner, baseline
        # Embeddings begin small: of products of small numbers hardly anything would be learnt.
        self.scaled = nn.LayerNorm(entity.content.shape[1])

    def entities(self, entities: EntityRows) -> Tensor:
        """float [T, size]: the tasks' entities by their attributes alone; their ratings are in the support."""
        vectors: Tensor = self.entity(replace(entities, rows=torch.full_like(entities.rows, -1)))
        return vectors

    def partners(
        self, lists: Ragged, partners: EntityRows, rating: Tensor | None = None, known: Tensor | None = None
    ) -> Seen:
        """The partners in `lists`.

        Where the lists' entities are `known` (int64 [T]), the baseline leaves out the entries' own `rating` (float [n],
        standardised), which it was fitted to.
        """
        named, place = distinct(lists.partner)
        chosen = partners.select(named)
        vectors: Tensor = self.scaled(self.partner(chosen))
        vectors = torch.cat([vectors, (chosen.rows < 0).to(vectors.dtype).unsqueeze(1)], 1)
        rows = chosen.rows.index_select(0, place)
        if known is None or rating is None:
            return Seen(vectors, place, *self.baseline(rows))
        return Seen(vectors, place, *self.baseline.without(rows, known.index_select(0, lists.owner), rating))

    def level(self, lists: Ragged, surprise: Tensor, partners: Seen) -> tuple[Tensor, Tensor]:
        """Mean and precision of the entity's bias over its deviation, float [T, 1] each: the exact posterior."""
        weight = self.baseline.prior_deviation**2 / partners.noise
        return condition(lists, (surprise / self.baseline.prior_deviation).unsqueeze(1), weight.unsqueeze(1))


class AmortisedLearner(NeuralAlgorithm):
    """Base of learners that read a support once.

    Before a network has looked, a standardised rating is ``r = b_e + b_p + N(0, σ_p²)`` (`Baseline`): biases are fitted
    first, and the posterior of the entity's b_e given the support is exact. A network says how ratings differ from it,
    once or for several draws of what the support leaves open: what it adds to the mean and to the logarithm of the
    variance, or where feedback is implicit, to the log odds of a choice that the partner's popularity gives. So the
    predictive distribution is a mixture, of which mean and variance are given; for implicit feedback the log odds of
    the mean probability.

    Parameters
    ----------
    size : int, default 32
        Numbers in an embedding of a user or an item.
    training : Training
        How the weights are trained, by default for 10 epochs with "adamw", a `learning_rate` of 0.005 and an `l2` of
        0.1: decay that is part of the gradient would win against a network that begins at adding nothing.
    """

    def __init__(
        self,
        *,
        size: Annotated[int, Range(1, 4096)] = 32,
        training: Training = Training(epochs=10, optimizer="adamw", learning_rate=0.005, l2=0.1),
        **options: Any,
    ) -> None:
        super().__init__(training=training, **options)
        self.size = size

    @abstractmethod
    def network(self, entity: EntityEmbedding, partner: EntityEmbedding, baseline: Baseline) -> TaskNetwork:
        """A network for the tasks of one side, with fresh weights."""

    def build(self, sizes: Sizes) -> nn.ModuleDict:
        """A network for each side, on shared embeddings."""
        user = EntityEmbedding(sizes.users, sizes.user_columns, self.size)
        item = EntityEmbedding(sizes.items, sizes.item_columns, self.size)
        return nn.ModuleDict(
            {
                "user": self.network(user, item, self.baseline("user")),
                "item": self.network(item, user, self.baseline("item")),
            }
        )

    def known(self, tasks: Tasks) -> Tensor | None:
        """int64 [T]: which known entities the tasks are of, in training."""
        return tasks.entity if self.network_.training and not self.implicit_ else None

    def asked(self, network: TaskNetwork, query: Query, tasks: Tasks | None = None) -> Seen:
        """The partners of the query, in training that of `tasks`."""
        if tasks is None:
            return network.partners(query, query.partners)
        return network.partners(query, query.partners, self.standardised(tasks.rating), self.known(tasks))

    def log_density(self, outputs: Tensor, rating: Tensor) -> Tensor:
        """float [L, n]: of ratings (float [n], standardised), under each draw's `outputs` (float [L, n, k])."""
        target = self.standardised(rating)
        if self.implicit_:
            odds = outputs[..., 0]
            return target * logsigmoid(odds) + (1 - target) * logsigmoid(-odds)
        mean, log_variance = outputs.unbind(-1)
        return -0.5 * ((target - mean).square() / log_variance.exp() + log_variance + math.log(2 * math.pi))

    def mixture(self, outputs: Tensor) -> Prediction:
        """The prediction of the draws' `outputs` (float [L, n, k])."""
        if self.implicit_:
            odds = outputs[..., 0]
            return Prediction(logsigmoid(odds).logsumexp(0) - logsigmoid(-odds).logsumexp(0))
        mean, log_variance = outputs.unbind(-1)
        noise = log_variance.exp().mean(0)
        variance = noise + (mean - mean.mean(0)).square().mean(0)
        scale = self.deviation_**2
        return Prediction(self.rated(mean.mean(0)), scale * variance, scale * noise)

    def explain(self, adapted: Adapted, support: Support, query: Query) -> Explanation:
        """The mean less what the rest of the support makes of it."""
        return leave_one_out(self, adapted, support, query)

    @property
    def outputs(self) -> int:
        """Numbers that the network gives for a query pair, k."""
        return 1 if self.implicit_ else 2


class Tokens(nn.Module):
    """A vector for each rating of a support: a network of ``W p + r V p + c``, of the partner p and the rating r.

    Parameters
    ----------
    inputs : int
        Numbers in a partner's vector.
    hidden, outputs : int
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.partner, self.rating = nn.Linear(inputs, hidden), nn.Linear(inputs, hidden)
        self.rest = nn.Sequential(nn.ReLU(), Perceptron(hidden, hidden, outputs))

    def forward(self, partners: Tensor, surprise: Tensor, place: Tensor | None = None) -> Tensor:
        """float [n, outputs]: of each entry, whose rating is `surprise` (float [n]) above what was expected.

        The vector of its partner stands in its `place` (int64 [n]) of `partners` (float [m, inputs]), by default in the
        same.
        """
        plain, scaled = self.partner(partners), self.rating(partners)
        if place is not None:
            plain, scaled = plain.index_select(0, place), scaled.index_select(0, place)
        seen = torch.addcmul(plain, surprise.unsqueeze(1), scaled)
        tokens: Tensor = self.rest(seen)
        return tokens


class FilmDecoder(nn.Module):
    """Predicts from a partner by a network whose two hidden layers the task scales and shifts.

    ``h ← relu((1 + γ(z, e)) ∘ (W h) + β(z, e))``, after Perez et al. 2018, with γ and β linear.

    Parameters
    ----------
    inputs : int
        Numbers in a partner's vector.
    condition : int
        Numbers in what is known of the task, z and e together.
    hidden, outputs : int
    """

    def __init__(self, inputs: int, condition: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)
        self.film = nn.Linear(condition, 4 * hidden)
        self.last = silent(nn.Linear(hidden, outputs))

    def forward(self, conditions: Tensor, partners: Seen, owner: Tensor) -> Tensor:
        """float [L, n, outputs], by L draws of `conditions` (float [L, T, c])."""
        seen = self.first(partners.vectors).index_select(0, partners.place)
        return torch.stack([self._outputs(condition, seen, owner) for condition in conditions])

    def _outputs(self, condition: Tensor, seen: Tensor, owner: Tensor) -> Tensor:
        scale, shift, next_scale, next_shift = self.film(condition).chunk(4, 1)
        hidden = self.second(_modulated(seen, scale, shift, owner))
        outputs: Tensor = self.last(_modulated(hidden, next_scale, next_shift, owner))
        return outputs


def _modulated(hidden: Tensor, scale: Tensor, shift: Tensor, owner: Tensor) -> Tensor:
    shifted = hidden + shift.index_select(0, owner)
    return torch.addcmul(shifted, scale.index_select(0, owner), hidden).relu()


class Noise(nn.Module):
    """Standard normal numbers: fresh ones for every task in training, else the same ones for all tasks.

    Half of them mirror the other half, so that their mean is 0; the same ones for all are scaled to the variance 1.

    Parameters
    ----------
    draws, size : int
        Draws L, and numbers in each.
    """

    fixed: Tensor

    def __init__(self, draws: int, size: int) -> None:
        super().__init__()
        self.draws = draws
        drawn = _mirrored(torch.randn(-(-draws // 2), size), draws)
        self.register_buffer("fixed", drawn / drawn.square().mean(0).sqrt())

    def forward(self, tasks: int) -> Tensor:
        """float [L, T, size]."""
        if not self.training:
            return self.fixed.unsqueeze(1).expand(-1, tasks, -1)
        drawn = torch.randn(-(-self.draws // 2), tasks, self.fixed.size(1), dtype=self.fixed.dtype)
        return _mirrored(drawn.to(self.fixed.device, non_blocking=True), self.draws)


def _mirrored(half: Tensor, count: int) -> Tensor:
    return torch.cat([half, -half])[:count]


@dataclass(frozen=True)
class Latent(Adapted):
    """What a support tells of each task, z ~ N(mean, diag(1 / precision)).

    Parameters
    ----------
    entity : float [T, size]
        The task's entity by its attributes.
    mean, precision : float [T, d]
    side : "user" or "item"
    """

    entity: Tensor
    mean: Tensor
    precision: Tensor
    side: Side


def condition(lists: Ragged, value: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and precision of z ~ N(0, I), float [T, d], given independent observations of each of its numbers.

    Parameters
    ----------
    lists : Ragged
        Observations of each task.
    value : float [n, d]
        Observed with the noise N(0, 1 / weight).
    weight : float [n, d]

    Notes
    -----
    ``precision = 1 + Σ w``, ``mean = Σ w v / precision``: Volpp et al. 2021, equation 8, for this prior.
    """
    precision = 1 + lists.sum(weight)
    return lists.sum(weight * value) / precision, precision


class LatentNetwork(TaskNetwork):
    """What the tasks of one side share: tokens of their ratings, and a decoder.

    Parameters
    ----------
    entity, partner : EntityEmbedding
        Of `size` numbers.
    size, latent, hidden, tokens, outputs : int
        Numbers in an embedding, in z, in a hidden layer, in a token and in what is given for a query pair.
    """

    def __init__(
        self,
        entity: EntityEmbedding,
        partner: EntityEmbedding,
        baseline: Baseline,
        *,
        size: int,
        latent: int,
        hidden: int,
        tokens: int,
        outputs: int,
    ) -> None:
        super().__init__(entity, partner, baseline)
        self.tokens = Tokens(size + 1, hidden, tokens)
        self.decoder = FilmDecoder(size + 1, 1 + latent + size, hidden, outputs)


class LatentLearner(AmortisedLearner):
    """Base of learners to whom a task is a vector z of d numbers, with prior N(0, I).

    A network reads q(z | S) = N(mean, diag(1 / precision)) from the support S; none leaves the prior. One number more,
    the first of all, is the entity's bias, whose posterior is exact. The decoder sees z, the entity's attributes and
    the partner: it is a network of the partner whose hidden layers z and the attributes scale and shift. What it gives
    for L draws of z is the predictive mixture.

    A variant says how the support is read (`network`, `read`). The loss is

        −1/n Σ_t log 1/L Σ_l p(Q_t | z_tl),   z_tl ~ q(z | S_t),

    with the Q_t of n ratings in all: a bound from above of the negative log-likelihood, the tighter, the more draws.

    Parameters
    ----------
    latent : int, default 32
        Numbers in z, d.
    hidden : int, default 64
        Units in a hidden layer.
    draws : int, default 8
        Draws of z, L, in training and in predictions. In predictions they are the same for all tasks.
    """

    def __init__(
        self,
        *,
        latent: Annotated[int, Range(1, 4096)] = 32,
        hidden: Annotated[int, Range(1, 4096)] = 64,
        draws: Annotated[int, Range(1, 4096)] = 8,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.latent = latent
        self.hidden = hidden
        self.draws = draws

    def build(self, sizes: Sizes) -> nn.ModuleDict:
        """A network for each side, on shared embeddings, and the draws' noise."""
        modules = super().build(sizes)
        modules["noise"] = Noise(self.draws, 1 + self.latent)
        return modules

    @abstractmethod
    def read(
        self, network: LatentNetwork, entity: Tensor, lists: Ragged, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean and precision of z, float [T, d], of the entities' vectors (float [T, size]) and the tokens."""

    def loss(self, tasks: Tasks) -> Tensor:
        """The bound, by the network's draws."""
        query = tasks.query
        outputs = self.decoded(self.posterior(tasks.support, self.known(tasks)), query, tasks)
        by_task = query.sum(self.log_density(outputs, tasks.rating).T)
        return (math.log(self.draws) - by_task.logsumexp(1)).sum() / tasks.rating.numel()

    @torch.no_grad()
    def adapt(self, support: Support) -> Latent:
        """What each support tells of z."""
        return self.posterior(support)

    @torch.no_grad()
    def predict(self, adapted: Adapted, query: Query) -> Prediction:
        """Mean and variance over the draws; the noise is what the decoder gives for one."""
        assert isinstance(adapted, Latent)
        return self.mixture(self.decoded(adapted, query))

    def posterior(self, support: Support, known: Tensor | None = None) -> Latent:
        """As `adapt`, differentiable in the network's weights; of `known` entities (int64 [T]) in training."""
        network = self.side(support.side)
        entity = network.entities(support.entities)
        rating = self.standardised(support.rating)
        seen = network.partners(support, support.partners, rating, known)
        surprise = rating - seen.expected
        level = network.level(support, surprise, seen)
        rest = self.read(network, entity, support, network.tokens(seen.vectors, surprise, seen.place))
        mean, precision = (torch.cat(both, 1) for both in zip(level, rest, strict=True))
        return Latent(entity, mean, precision, support.side)

    def decoded(self, latent: Latent, query: Query, tasks: Tasks | None = None) -> Tensor:
        """float [L, n, k]: what each draw gives for the query, in training that of `tasks`."""
        noise = cast(nn.ModuleDict, self.network_)["noise"](len(latent.mean))
        z = latent.mean + noise / latent.precision.sqrt()
        network = self.side(latent.side)
        seen = self.asked(network, query, tasks)
        conditions = torch.cat([z, latent.entity.expand(self.draws, -1, -1)], 2)
        added: Tensor = network.decoder(conditions, seen, query.owner)
        level = network.baseline.prior_deviation * z[..., 0].index_select(1, query.owner)
        mean, variance = seen.expected + level, seen.noise.expand_as(level)
        return added + torch.stack([mean, variance.log()], 2)[..., : self.outputs]

    def side(self, side: Side) -> LatentNetwork:
        """What the tasks of a side share."""
        return cast(LatentNetwork, cast(nn.ModuleDict, self.network_)[side])

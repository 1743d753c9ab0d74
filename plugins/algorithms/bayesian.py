"""The default: a hierarchical linear-Gaussian model with content priors on both sides."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor

from metarec import Range, hookimpl
from metarec.data import SIDES, Dataset, Features, RatingScale, Side, partner_side
from metarec.learning import (
    Adapted,
    Algorithm,
    ContentPrior,
    Explanation,
    Prediction,
    Run,
    fit_content_prior,
)
from metarec.learning.content_prior import batched_mv, spd_inverse
from metarec.ops import GaussianPosterior, gaussian_posterior
from metarec.tasks import EntityRows, Query, Ragged, Support, Tasks
from metarec.testing.oracles.check import Check, distance, fitted, tasks_of

MOST_KNOTS = 20
RATINGS_PER_KNOT = 500
LEAST_VARIANCE = 1e-4
SWEEPS_WITH_CONTENT = 3
PAIRS_AT_ONCE = 1 << 16
PAIRS_FOR_NOISE = 1 << 16


@dataclass(frozen=True)
class Posterior(Adapted):
    """Of each task's entity: its bias and its factors, jointly Gaussian.

    Parameters
    ----------
    mean : float [T, 1 + rank]
    cholesky : float [T, 1 + rank, 1 + rank]
        Lower Cholesky factor of the precision.
    """

    mean: Tensor
    cholesky: Tensor


@dataclass(frozen=True)
class ChoicePosterior(Posterior):
    """The same of what it chooses.

    Parameters
    ----------
    prior : float [T, 1 + rank]
        The mean before any choice is known.
    count : int64 [T]
        Partners in the support.
    sums : float [T, d² + 2 d], with d = 1 + rank
        Sums over them of φφᵀ, (1 − o) φ and o φ, with o the score that the partner has by itself.
    """

    prior: Tensor
    count: Tensor
    sums: Tensor


@dataclass(frozen=True)
class Newcomers(Adapted):
    """What each task's entity is like.

    Parameters
    ----------
    choice : ChoicePosterior
    rating : Posterior, optional
        None where feedback is implicit.
    side : "user" or "item"
    """

    choice: ChoicePosterior
    rating: Posterior | None
    side: Side


class Gaussians(NamedTuple):
    """Bias and factors of N entities: mean [N, 1 + rank] and covariance [N, 1 + rank, 1 + rank]."""

    mean: Tensor
    covariance: Tensor

    @property
    def bias(self) -> Tensor:
        """float [N]: mean bias."""
        return self.mean[:, 0]

    @property
    def pattern(self) -> Tensor:
        """float [N, 1 + rank]: 1 and the mean factors, by which the other side's bias and factors enter a rating."""
        return torch.cat([torch.ones_like(self.mean[:, :1]), self.mean[:, 1:]], 1)

    @property
    def pattern_covariance(self) -> Tensor:
        """float [N, 1 + rank, 1 + rank]: of `pattern`; its first row and column are 0."""
        covariance = self.covariance.clone()
        covariance[:, 0] = 0
        covariance[:, :, 0] = 0
        return covariance

    @property
    def pattern_with_bias(self) -> Tensor:
        """float [N, 1 + rank]: covariance of `pattern` with the bias; its first column is 0."""
        covariance = self.covariance[:, :, 0].clone()
        covariance[:, 0] = 0
        return covariance

    @property
    def pattern_moment(self) -> Tensor:
        """float [N, (1 + rank)²]: the second moment of the pattern."""
        return _outer(self.pattern) + self.pattern_covariance.flatten(1)


class Link(NamedTuple):
    """What choices say of ratings: ``θ | c ~ N(θ₀ + Bᵀ(c − c₀), Σ)`` for an entity that chooses by c, expected c₀.

    Parameters
    ----------
    weight : float [1 + rank, 1 + rank]
        B.
    covariance : float [1 + rank, 1 + rank]
        Σ, of what choices leave open.
    scale : float []
        s, by which the covariance of c counts.
    """

    weight: Tensor
    covariance: Tensor
    scale: Tensor

    def given(self, prior: Tensor, choice: ChoicePosterior) -> tuple[Tensor, Tensor]:
        """Mean [T, 1 + rank] and precision [T, 1 + rank, 1 + rank] of θ before any rating, θ₀ being `prior`."""
        half: Tensor = torch.linalg.solve_triangular(choice.cholesky, self.weight, upper=False)
        mean = prior + (choice.mean - choice.prior) @ self.weight
        return mean, spd_inverse(self.covariance + self.scale * (half.mT @ half))


class Observations(NamedTuple):
    """What the ratings of a support say of its entities: ``target = feature · θ + N(0, 1 / precision)``."""

    feature: Tensor
    target: Tensor
    precision: Tensor


class Bayesian(Algorithm):
    """Bias and factors of users and items, Gaussian around what their attributes lead to expect.

        r_ui = μ + b_u + b_i + uᵀv + ε,   (b_u, u) ~ N(W_U f_u + c_U, Σ_U),   (b_i, v) ~ N(W_I f_i + c_I, Σ_I),
        ε ~ N(0, σ²(m))

    with f the attributes' features and m the expected rating: on most scales ratings near an end vary less, so the
    noise is a function of the mean, log-linear between knots. Such ratings are skewed too, and full weights 1/σ²(m)
    would trust them too much: posteriors take the noise half-way to its average, τ² = σ(m) σ̄; predictions take it as
    it is.

    **Fit.** Variational EM with q = Π_u q(b_u, u) Π_i q(b_i, v): each factor is the exact Gaussian posterior given the
    other side's moments. The content priors are then fitted as `fit_content_prior` does, each entity weighted by its
    ratings, since that is how often a new one like it will be met.

    **Adapt and predict.** With θ the entity's bias and factors, θ₀ their prior mean, and φ = (1, v) of a partner,

        Λ = Σ⁻¹ + Σ_j w_j φ_j φ_jᵀ,   θ̂ = θ₀ + Λ⁻¹ Σ_j w_j φ_j (r_j − μ − b_j − φ_jᵀ θ₀)

    exactly, given the partners. What is not known of them counts by moment matching: with C the partner's covariance,
    1/w = τ² + E[aᵀ C a] over the prior of a = (1, u), and the variance of a rating is
    σ² + âᵀ C â + φ̂ᵀ Λ⁻¹ φ̂ + tr(C Λ⁻¹), the trace over the factors. The same holds with the sides swapped; a new
    partner has its content prior. θ₀ and Σ are those given what the entity chooses, see below.

    **Choices** (Hu et al. 2008), from implicit feedback, or beside explicit ratings from what was rated at all: a model
    of the same form for 1 where a partner was chosen, with weight 1, and 0 where not, with weight `unobserved_weight`;
    θ is the weighted ridge regression over all known partners, from one Gram matrix of them all. The item's bias is its
    popularity. A support of n partners shows a share ``min(1, n / n̄)`` of what its entity would choose, with n̄ the
    known entities' average: what is not in it counts as not chosen by that share, so that an empty support keeps the
    prior. The weights make a pseudo-likelihood, so no variance is given. Lists over a catalogue are ranked by this:
    what matters there is what a newcomer would choose.

    **What choices say of ratings** (the idea of SVD++, Koren 2008). What an entity chooses at all tells how it rates:
    with c its bias and factors of choices, expected c₀ by its attributes, and c ~ N(ĉ, V) by its support,

        θ ~ N(θ₀ + Bᵀ(ĉ − c₀), Σ + s Bᵀ V B)

    before any rating is read, and N(θ₀, Σ + s Bᵀ Σ_c B) before any choice is known. B is fitted with the rest of the
    prior: what known entities chose is one more attribute of theirs. V comes from a pseudo-likelihood, and has no scale
    of its own: s ≤ 1 is such that a new entity has the variance, in units of Σ, that attributes alone leave open.

    Parameters
    ----------
    rank : int, default 16
        Number of factors.
    iterations : int, default 8
        Sweeps of EM.
    unobserved_weight : float, default 0.2
        How much a partner that was not chosen counts beside one that was.

    References
    ----------
    Lim & Teh 2007, Variational Bayesian approach to movie rating prediction. Agarwal & Chen 2009, Regression-based
    latent factor models. Hu, Koren, Volinsky 2008, Collaborative filtering for implicit feedback datasets.
    """

    name = "bayesian"
    ranks_by: ClassVar[Literal["mean", "choice"]] = "choice"

    def __init__(
        self,
        *,
        rank: Annotated[int, Range(1, 256)] = 16,
        iterations: Annotated[int, Range(1, 1000)] = 8,
        unobserved_weight: Annotated[float, Range(0.001, 0.9, log=True)] = 0.2,
    ) -> None:
        self.rank = rank
        self.iterations = iterations
        self.unobserved_weight = unobserved_weight

    def fit(self, train: Dataset, *, valid: Tasks | None = None, run: Run = Run()) -> Self:
        """Fit what is chosen, and where ratings are explicit what they are."""
        choices = self._fitted(_choices(train), run, "choices")
        self.choice_ = choices.choice_model().state()
        self.rating_ = {}
        if not train.scale.implicit:
            self.rating_ = self._fitted(train, run, "ratings", choices).rating_model().state()
        return self

    def adapt(self, support: Support) -> Newcomers:
        """The posterior of each task's bias and factors."""
        choice = self.choices.adapt(support)
        rating = self.ratings.adapt(support, choice) if self.rating_ else None
        return Newcomers(choice, rating, support.side)

    def predict(self, adapted: Adapted, query: Query) -> Prediction:
        """Mean and variance of each rating; with implicit feedback the score of being chosen."""
        newcomers = _newcomers(adapted)
        if newcomers.rating is None:
            return Prediction(
                self.choices.expected(newcomers.side, newcomers.choice.mean[query.owner], query)
            )
        return self.ratings.predict(newcomers.side, newcomers.rating, query)

    def query_factors(self, adapted: Adapted) -> Tensor:
        """float [T, rank + 2]: ``(1, μ + bias, factors)`` of what the entities choose."""
        return _entity_factors(self.choices.mean, _newcomers(adapted).choice.mean)

    def candidate_factors(self, side: Side, partners: EntityRows) -> Tensor:
        """float [P, rank + 2]: ``(bias, 1, factors)`` of how the partners are chosen."""
        return _partner_factors(self.choices.entities(partner_side(side), partners))

    def absorb(self, adapted: Adapted, rating: Support) -> Newcomers:
        """One more rating per task, in O(rank³)."""
        return self._updated(_newcomers(adapted), rating, 1)

    def forget(self, adapted: Adapted, rating: Support) -> Newcomers:
        """One rating less per task, in O(rank³)."""
        return self._updated(_newcomers(adapted), rating, -1)

    def explain(self, adapted: Adapted, support: Support, query: Query) -> Explanation:
        """Rating j adds ``φ*ᵀ Λ⁻¹ w_j φ_j (r_j − μ − b_j − φ_jᵀ θ₀)`` to what the prior expects, and its choice a part.

        The choice moves c by its part of ``c − c₀``, and with it the prior mean of θ by B's. What was not chosen counts
        too; each of the support's has an equal share of that.
        """
        newcomers, owner = _newcomers(adapted), query.owner
        choice, rating = newcomers.choice, newcomers.rating
        model: FactorModel = self.choices if rating is None else self.ratings
        partners, partner = model.met(support.side, query)
        asked = partners.pattern[partner]
        prior = model.prior[support.side].mean(support.entities.features)
        offsets, entries = support.entries(owner)
        pair = torch.repeat_interleave(torch.arange(len(asked), device=asked.device), offsets.diff())
        contribution = asked.new_zeros(len(entries))
        if rating is not None:
            pull = _solved_by(rating.cholesky[owner], asked)
            contribution = (pull[pair] * self.ratings.push(support)[entries]).sum(1)
            link = self.ratings.link[support.side]
            _, precision = link.given(prior, choice)
            asked = batched_mv(precision[owner], pull) @ link.weight.mT
        pull = _solved_by(choice.cholesky[owner], asked)
        return Explanation(
            baseline=_expected(model.mean, prior[owner], partners, partner),
            offsets=offsets,
            contribution=contribution + (pull[pair] * self.choices.push(support)[entries]).sum(1),
            kind="additive",
        )

    @classmethod
    def oracles(cls) -> Iterator[Check]:
        """Given its partners and choices, an entity's ratings are a Gaussian process: kernel ``φᵀ(Σ + s BᵀVB)φ``."""
        learner, support = fitted(cls, {"rank": 3, "iterations": 4}), tasks_of("new-user").support
        model, choice = learner.ratings, learner.choices.adapt(support)
        weight, left, scale = model.link["user"]
        start = model.prior["user"].mean(support.entities.features) + (choice.mean - choice.prior) @ weight
        means, spreads, densities = [], [], []
        for task, prior in enumerate(start):
            entries = support.owner == task
            feature, target, precision = (part[entries] for part in model.observations(support))
            root = choice.cholesky[task]
            covariance = left + scale * weight.mT @ torch.linalg.inv(root @ root.mT) @ weight
            kernel = feature @ covariance @ feature.mT + torch.diag(1 / precision)
            gain = covariance @ feature.mT @ torch.linalg.inv(kernel)
            means.append(prior + gain @ (target - feature @ prior))
            spreads.append(covariance - gain @ feature @ covariance)
            law = torch.distributions.MultivariateNormal(feature @ prior, kernel) if len(target) else None
            densities.append(law.log_prob(target) if law else target.sum())
        posterior = model.adapt(support, choice)
        covariances = torch.cholesky_inverse(posterior.cholesky)
        found = (posterior.mean, covariances, model.log_evidence(support, choice))
        names = (
            "mean of the Gaussian process",
            "covariance of the Gaussian process",
            "evidence is its density",
        )
        for name, one, other in zip(names, found, (means, spreads, densities), strict=True):
            yield Check(name, distance(one, torch.stack(other)), 1e-10)

    @property
    def ratings(self) -> RatingModel:
        """How ratings come about, where they are explicit."""
        return RatingModel.from_state(self.rating_)

    @property
    def choices(self) -> ChoiceModel:
        """How partners are chosen."""
        return ChoiceModel.from_state(self.choice_)

    def _fitted(
        self, train: Dataset, run: Run, what: str, choices: VariationalEM | None = None
    ) -> VariationalEM:
        unobserved = self.unobserved_weight if train.scale.implicit else 0.0
        em = VariationalEM(train, rank=self.rank, unobserved=unobserved, run=run, choices=choices)
        for epoch in run.epochs(self.iterations, f"fit {self.name}: {what}"):
            em.sweep()
            run.report(self, epoch, {f"noise of {what}": float(em.noise.average)})
        em.fit_content_priors()
        return em

    def _updated(self, newcomers: Newcomers, rating: Support, sign: int) -> Newcomers:
        choice = self.choices.updated(newcomers.choice, rating, sign)
        if newcomers.rating is None:
            return replace(newcomers, choice=choice)
        ratings = self.ratings.updated(newcomers.rating, newcomers.choice, choice, rating, sign)
        return replace(newcomers, choice=choice, rating=ratings)


@dataclass(frozen=True)
class FactorModel(ABC):
    """``μ + b_u + b_i + uᵀv``, with what is known of each entity and what is expected of a new one.

    Parameters
    ----------
    mean : float
        μ.
    prior : mapping of side to ContentPrior
    known : mapping of side to Gaussians
        Of the training set's entities.
    """

    mean: float
    prior: Mapping[Side, ContentPrior]
    known: Mapping[Side, Gaussians]

    def state(self) -> dict[str, Any]:
        """Everything as nested mappings of tensors and numbers."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    def entities(self, side: Side, entities: EntityRows) -> Gaussians:
        """What is known of entities as partners: what `fit` made of their ratings, or of new ones the prior."""
        known, prior = self.known[side], self.prior[side]
        new, rows = entities.rows < 0, entities.rows.clamp(min=0)
        mean, covariance = known.mean[rows], known.covariance[rows]
        if new.any():
            mean = torch.where(new[:, None], prior.mean(entities.features), mean)
            covariance = torch.where(new[:, None, None], prior.covariance, covariance)
        return Gaussians(mean, covariance)

    def met(self, side: Side, lists: Support | Query) -> tuple[Gaussians, Tensor]:
        """The partners that tasks on `side` name, and each entry's among them."""
        named, partner = torch.unique(lists.partner, return_inverse=True)
        return self.entities(partner_side(side), lists.partners.select(named)), partner

    def expected(self, side: Side, entities: Tensor, query: Query) -> Tensor:
        """float [n]: the mean for each query partner, of the `entities` (float [n, 1 + rank]) that ask."""
        partners, partner = self.met(side, query)
        return _expected(self.mean, entities, partners, partner)

    @abstractmethod
    def push(self, support: Support) -> Tensor:
        """float [n, 1 + rank]: what each rating adds to ``Λ (θ̂ − θ₀)``."""


@dataclass(frozen=True)
class RatingModel(FactorModel):
    """What ratings are.

    Parameters
    ----------
    noise : Noise
    link : mapping of side to Link
        What the choices say of them.
    """

    noise: Noise
    link: Mapping[Side, Link]

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> RatingModel:
        """The model that `state` was taken of."""
        link = {side: Link(**state["link"][side]) for side in SIDES}
        return cls(state["mean"], *_sides(state), Noise(**state["noise"]), link)

    def adapt(self, support: Support, choice: ChoicePosterior) -> Posterior:
        """The posterior given a support, and what it says of choices."""
        posterior = self._posterior(support, choice)
        return Posterior(posterior.mean, posterior.cholesky)

    def log_evidence(self, support: Support, choice: ChoicePosterior) -> Tensor:
        """float [T]: log density of each task's ratings given what was chosen, before any rating is known."""
        return self._posterior(support, choice).log_evidence

    def predict(self, side: Side, posterior: Posterior, query: Query) -> Prediction:
        """Mean and variance of each query partner's rating."""
        partners, partner = self.met(side, query)
        mean = _expected(self.mean, posterior.mean[query.owner], partners, partner)
        entities = Gaussians(posterior.mean, torch.cholesky_inverse(posterior.cholesky))
        noise = self.noise(mean)
        return Prediction(mean, noise + _unknown(entities, query.owner, partners, partner), noise)

    def updated(
        self,
        posterior: Posterior,
        before: ChoicePosterior,
        after: ChoicePosterior,
        rating: Support,
        sign: int,
    ) -> Posterior:
        """With one more rating per task, or one less where `sign` is −1, which changes what is known of choices."""
        feature, target, weight = self.observations(rating)
        total = posterior.cholesky @ posterior.cholesky.mT
        shift = batched_mv(total, posterior.mean) + sign * (weight * target)[:, None] * feature
        total = total + sign * weight[:, None, None] * feature[:, :, None] * feature[:, None]
        for choice, how in ((before, -1), (after, 1)):
            mean, precision = self._start(rating, choice)
            total, shift = total + how * precision, shift + how * batched_mv(precision, mean)
        cholesky = torch.linalg.cholesky(total)
        return Posterior(_solved_by(cholesky, shift), cholesky)

    def push(self, support: Support) -> Tensor:
        feature, target, precision = self.observations(support)
        prior = self.prior[support.side].mean(support.entities.features)
        surprise = target - (feature * prior[support.owner]).sum(1)
        return feature * (precision * surprise)[:, None]

    def observations(self, support: Support) -> Observations:
        """What the ratings say of their entities."""
        prior = self.prior[support.side]
        partners, partner = self.met(support.side, support)
        feature, offset = partners.pattern[partner], self.mean + partners.bias[partner]
        entities = Gaussians(
            prior.mean(support.entities.features), prior.covariance.expand(len(support), -1, -1)
        )
        noise = self.noise.tempered(offset + (feature * entities.mean[support.owner]).sum(1))
        unknown = _pairwise(partners.covariance.flatten(1), partner, entities.pattern_moment, support.owner)
        return Observations(feature, support.rating - offset, 1 / (noise + unknown))

    def _posterior(self, support: Support, choice: ChoicePosterior) -> GaussianPosterior:
        return gaussian_posterior(*self.observations(support), support.offsets, *self._start(support, choice))

    def _start(self, of: Support, choice: ChoicePosterior) -> tuple[Tensor, Tensor]:
        """Mean and precision of the entities of `of` before any rating is known."""
        return self.link[of.side].given(self.prior[of.side].mean(of.entities.features), choice)


@dataclass(frozen=True)
class ChoiceModel(FactorModel):
    """What is chosen.

    Parameters
    ----------
    background : mapping of side to Background
        What is not chosen.
    """

    background: Mapping[Side, Background]

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ChoiceModel:
        """The model that `state` was taken of."""
        background = {side: Background(**state["background"][side]) for side in SIDES}
        return cls(state["mean"], *_sides(state), background)

    def adapt(self, support: Support) -> ChoicePosterior:
        """The posterior given a support."""
        partners, partner = self.met(support.side, support)
        offset = (self.mean + partners.bias)[:, None]
        pattern = partners.pattern
        table = torch.cat([_outer(pattern), (1 - offset) * pattern, offset * pattern], 1)
        sums = _gathered(table, partner, support.offsets, table.new_ones(partner.numel()))
        return self._posterior(support, support.counts, sums)

    def updated(self, posterior: ChoicePosterior, rating: Support, sign: int) -> ChoicePosterior:
        """With one more choice per task, or one less where `sign` is −1."""
        one = self.adapt(rating)
        return self._posterior(rating, posterior.count + sign, posterior.sums + sign * one.sums)

    def push(self, support: Support) -> Tensor:
        background, share = self.background[support.side], self._share(support.side, support.counts)
        prior = self.prior[support.side].mean(support.entities.features)
        observed, unobserved = background.weights[0], (background.weights[1] * share)[support.owner]
        partners, partner = self.met(support.side, support)
        pattern, offset = partners.pattern[partner], self.mean + partners.bias[partner]
        own = (pattern * prior[support.owner]).sum(1)
        chosen = observed * (1 - offset - own) + unobserved * (offset + own)
        rest = (share / support.counts)[:, None] * (background.shift - prior @ background.precision)
        return pattern * chosen[:, None] + rest[support.owner]

    def _posterior(self, of: Support, count: Tensor, sums: Tensor) -> ChoicePosterior:
        """From the sums over the partners of the tasks of `of`."""
        prior, background, share = self.prior[of.side], self.background[of.side], self._share(of.side, count)
        mean = prior.mean(of.entities.features)
        size = mean.shape[1]
        moment, chosen, by_itself = sums.split([size**2, size, size], 1)
        observed, unobserved = background.weights[0], (background.weights[1] * share)[:, None]
        inverse = spd_inverse(prior.covariance)
        extra = ((observed - unobserved) * moment).view(-1, size, size)
        precision = inverse + share[:, None, None] * background.precision + extra
        shift = (
            mean @ inverse + share[:, None] * background.shift + observed * chosen + unobserved * by_itself
        )
        cholesky = torch.linalg.cholesky(precision)
        return ChoicePosterior(_solved_by(cholesky, shift), cholesky, mean, count, sums)

    def _share(self, side: Side, count: Tensor) -> Tensor:
        """float [T]: how much of what an entity would choose a support of some size shows."""
        usual = self.background[side].usual
        return (count.to(usual.dtype) / usual).clamp(max=1)


class Noise(NamedTuple):
    """Variance of a rating around its mean, as a function of the mean.

    Parameters
    ----------
    mean, variance : float [K]
        The knots, by rising mean: log-linear between them, constant beyond.
    average : float []
        Variance of the average rating.
    """

    mean: Tensor
    variance: Tensor
    average: Tensor

    @classmethod
    def constant(cls, variance: Tensor) -> Noise:
        """The same variance (float []) everywhere."""
        return cls(torch.zeros_like(variance[None]), variance[None], variance)

    @classmethod
    def fit(cls, mean: Tensor, square: Tensor) -> Noise:
        """From expected squared errors at some means, averaged over as many equal shares as knots."""
        knots = max(1, min(MOST_KNOTS, mean.numel() // RATINGS_PER_KNOT))
        order = mean.argsort(stable=True)
        shares = [(mean[share].mean(), square[share].mean()) for share in order.tensor_split(knots)]
        means, variances = zip(*shares, strict=True)
        knot_variance = torch.stack(variances).clamp(min=LEAST_VARIANCE)
        return cls(torch.stack(means), knot_variance, square.mean().clamp(min=LEAST_VARIANCE))

    def __call__(self, mean: Tensor) -> Tensor:
        """The variance at each mean."""
        right = torch.bucketize(mean, self.mean).clamp(max=self.mean.numel() - 1)
        left = (torch.bucketize(mean, self.mean) - 1).clamp(min=0)
        width = (self.mean[right] - self.mean[left]).clamp(min=1e-12)
        share = ((mean - self.mean[left]) / width).clamp(0, 1)
        log = self.variance.log()
        variance: Tensor = torch.lerp(log[left], log[right], share).exp()
        return variance

    def tempered(self, mean: Tensor) -> Tensor:
        """Half-way, in logs, from the average to the variance at each mean."""
        return (self.average * self(mean)).sqrt()


class Background(NamedTuple):
    """What it says of an entity that it chose none of all partners.

    Parameters
    ----------
    precision : float [d, d]
    shift : float [d]
    weights : float [2]
        Of a partner that was chosen, and of one that was not.
    usual : float []
        Partners that a known entity chose, on average.
    """

    precision: Tensor
    shift: Tensor
    weights: Tensor
    usual: Tensor


class VariationalEM:
    """The state of the fit: the factorised posterior, the priors and the noise.

    Parameters
    ----------
    train : Dataset
    rank : int
    unobserved : float
        Weight of a pair without a rating, as a share of one with; 0 where feedback is explicit.
    run : Run
    choices : VariationalEM, optional
        The fit of what is chosen, which says something of ratings.
    """

    def __init__(
        self,
        train: Dataset,
        *,
        rank: int,
        unobserved: float,
        run: Run,
        choices: VariationalEM | None = None,
    ) -> None:
        self.run = run
        self.unobserved = unobserved
        self.generator = torch.Generator().manual_seed(run.seed)
        self.rating = train.rating.to(run.device, run.dtype)
        self.row = {side: train.rows(side).long().to(run.device) for side in SIDES}
        self.size = {side: len(train.entities(side)) for side in SIDES}
        self.lists = {side: Ragged.grouped(self.row[side], self.size[side]) for side in SIDES}
        self.choices = choices
        self.attributes = {side: _features(train, side).to(run.device) for side in SIDES}
        self.features = {side: self._described(side) for side in SIDES}
        share = train.rating.numel() / (self.size["user"] * self.size["item"])
        self.mean = share if unobserved else float(train.rating.mean(dtype=torch.float64))
        total = share if unobserved else float(train.rating.double().var(correction=0))
        total = max(total, LEAST_VARIANCE)
        self.noise = Noise.constant(self.rating.new_tensor(0.6 * total))
        self.precision = 1 / self.noise(self.rating)
        self.prior: dict[Side, ContentPrior] = {}
        self.known: dict[Side, Gaussians] = {}
        self.natural: dict[Side, tuple[Tensor, Tensor]] = {}
        self.left_open: dict[Side, Tensor] = {}  # the prior covariance given attributes alone
        for side in SIDES:
            self._begin(side, rank, 0.2 * total)

    def sweep(self) -> None:
        """Maximise the bound in the posterior and the prior of each side, then refit the noise."""
        for side in SIDES:
            self.update(side)
            self.update_prior(side)
        self.update_noise()

    def update(self, side: Side) -> None:
        """The posterior of a side's entities given the other's: the maximum of the bound in it."""
        lists, prior = self.lists[side], self.prior[side].to(self.run.device, self.run.dtype)
        partners, partner = self.known[partner_side(side)], self.row[partner_side(side)][lists.partner]
        observations = self._observations(side, partners, partner)
        unknown = _gathered(
            partners.pattern_covariance.flatten(1), partner, lists.offsets, observations.precision
        )
        inverse = spd_inverse(prior.covariance)
        precision = inverse + unknown.view(-1, *inverse.shape)
        natural = prior.mean(self.features[side]) @ inverse
        shift = -_gathered(partners.pattern_with_bias, partner, lists.offsets, observations.precision)
        if self.unobserved:
            background = self.background(side)
            precision, shift = precision + background.precision, shift + background.shift
        posterior = gaussian_posterior(
            *observations,
            lists.offsets,
            _solved_by(torch.linalg.cholesky(precision), natural + shift),
            precision,
        )
        total = posterior.cholesky @ posterior.cholesky.mT
        self.known[side] = Gaussians(posterior.mean, torch.cholesky_inverse(posterior.cholesky))
        self.natural[side] = (total - inverse, batched_mv(total, posterior.mean) - natural)

    def update_prior(self, side: Side) -> None:
        """Mean and covariance of a side's entities, content left aside."""
        known, prior = self.known[side], self.prior[side]
        intercept = known.mean.double().mean(0)
        away = known.mean.double() - intercept
        covariance = known.covariance.double().mean(0) + away.mT @ away / len(away)
        self.prior[side] = ContentPrior(torch.zeros_like(prior.weight), intercept, covariance)

    def update_noise(self) -> None:
        """The noise as a function of the mean, and with it each rating's precision."""
        if self.unobserved:
            self.noise = Noise.constant(self.rating.new_tensor(self._one_class_error()))
            self.precision = 1 / self.noise(self.rating)
            return
        users, items = (self.known[side] for side in SIDES)
        mean = _expected(self.mean, users.mean[self.row["user"]], items, self.row["item"])
        some = torch.randperm(len(mean), generator=self.generator)[:PAIRS_FOR_NOISE].to(mean.device)
        unknown = _unknown(users, self.row["user"][some], items, self.row["item"][some])
        self.noise = Noise.fit(mean[some], (self.rating - mean)[some].square() + unknown)
        self.precision = 1 / self.noise.tempered(mean)

    def fit_content_priors(self) -> None:
        """Fit both content priors, and the posterior under them."""
        for side in SIDES:
            if self.choices is not None:
                self.left_open[side] = self._content_prior(side, self.attributes[side]).covariance
            self.prior[side] = self._content_prior(side, self.features[side])
        for _ in range(SWEEPS_WITH_CONTENT):
            for side in SIDES:
                self.update(side)
            self.update_noise()

    def _content_prior(self, side: Side, features: Features) -> ContentPrior:
        precision, shift = (part.cpu() for part in self.natural[side])
        return fit_content_prior(
            features.to("cpu"),
            precision,
            shift,
            self.lists[side].counts.cpu(),
            self.prior[side].covariance.cpu(),
            self.generator,
        ).to(self.run.device, torch.float64)

    def background(self, side: Side) -> Background:
        """What an implicit entity on `side` has of all its partners together, chosen or not."""
        partners = self.known[partner_side(side)]
        observed = float(self.precision[0])
        weight = self.unobserved * observed
        pattern = partners.pattern
        moment = partners.pattern_moment.sum(0).view(pattern.shape[1], -1)
        shift = pattern.mT @ (self.mean + partners.bias) + partners.pattern_with_bias.sum(0)
        usual = moment.new_tensor(self.rating.numel() / self.size[side])
        return Background(weight * moment, -weight * shift, moment.new_tensor([observed, weight]), usual)

    def spread(self, side: Side) -> Tensor:
        """float []: the root mean square of a side's prior deviations."""
        return self.prior[side].covariance.diagonal().mean().sqrt().to(self.run.dtype)

    def rating_model(self) -> RatingModel:
        """What was found of explicit ratings."""
        links: dict[Side, Link] = {}
        prior, known = self._found()
        for side in SIDES:
            prior[side], links[side] = self._linked(side, prior[side])
        return RatingModel(self.mean, prior, known, self.noise, links)

    def choice_model(self) -> ChoiceModel:
        """What was found of implicit feedback."""
        return ChoiceModel(self.mean, *self._found(), {side: self.background(side) for side in SIDES})

    def _found(self) -> tuple[dict[Side, ContentPrior], dict[Side, Gaussians]]:
        return {side: self.prior[side].to(self.run.device, self.run.dtype) for side in SIDES}, self.known

    def _described(self, side: Side) -> Features:
        """The attributes, and beside them what is chosen."""
        if self.choices is None:
            return self.attributes[side]
        # In units of the prior: where little is known of c, it hardly varies, and the ridge lets it say little.
        chosen = self.choices.known[side].mean / self.choices.spread(side)
        return Features.concatenate([self.attributes[side], Features.from_dense(chosen.float(), "choices")])

    def _linked(self, side: Side, prior: ContentPrior) -> tuple[ContentPrior, Link]:
        """The prior before any choice is known, and what choices add to it, from the prior given both."""
        assert self.choices is not None
        chosen = self.choices.prior[side].to(self.run.device, self.run.dtype)
        by_content, by_choice = prior.weight.tensor_split([len(chosen.weight)])
        weight = by_choice / self.choices.spread(side)
        brought = weight.mT @ chosen.covariance @ weight
        closed = self.left_open[side].to(brought) - prior.covariance
        least = torch.finfo(brought.dtype).tiny
        share = _share(brought, prior.covariance).clamp(min=least)
        scale = (_share(closed, prior.covariance) / share).clamp(0, 1)
        expected = ContentPrior(
            by_content + chosen.weight @ weight,
            prior.intercept + chosen.intercept @ weight,
            prior.covariance + scale * brought,
        )
        return expected, Link(weight, prior.covariance, scale)

    def evidence_bound(self) -> float:
        """The evidence lower bound, for explicit ratings."""
        users, items = (self.known[side] for side in SIDES)
        mean = _expected(self.mean, users.mean[self.row["user"]], items, self.row["item"])
        square = (self.rating - mean).square() + _unknown(users, self.row["user"], items, self.row["item"])
        fit = (self.precision.log() - math.log(2 * math.pi) - self.precision * square).sum() / 2
        return float(fit) - sum(self._divergence(side) for side in SIDES)

    def _divergence(self, side: Side) -> float:
        """KL of a side's posterior from its prior."""
        known, prior = self.known[side], self.prior[side].to(self.run.device, self.run.dtype)
        away = known.mean - prior.mean(self.features[side])
        inverse = spd_inverse(prior.covariance)
        moment = known.covariance.sum(0) + away.mT @ away
        log_ratio = torch.logdet(prior.covariance) * len(away) - torch.logdet(known.covariance).sum()
        return float((inverse * moment).sum() - away.numel() + log_ratio) / 2

    def _observations(self, side: Side, partners: Gaussians, partner: Tensor) -> Observations:
        lists = self.lists[side]
        feature, offset = partners.pattern[partner], self.mean + partners.bias[partner]
        if self.unobserved:
            observed = float(self.precision[0])
            return _one_class(feature, offset, observed, self.unobserved * observed)
        return Observations(feature, self.rating[lists.partner] - offset, self.precision[lists.partner])

    def _one_class_error(self) -> float:
        """Mean square of the errors of all pairs, weighted."""
        users, items = (self.known[side] for side in SIDES)
        left, right = _entity_factors(self.mean, users.mean), _partner_factors(items)
        every = float(((left.mT @ left) * (right.mT @ right)).sum())
        chosen = _expected(self.mean, users.mean[self.row["user"]], items, self.row["item"])
        count, pairs = chosen.numel(), self.size["user"] * self.size["item"]
        square = (1 - chosen).square().sum() + self.unobserved * (every - float(chosen.square().sum()))
        return max(float(square) / (count + self.unobserved * (pairs - count)), LEAST_VARIANCE)

    def _begin(self, side: Side, rank: int, variance: float) -> None:
        deviation = math.sqrt(variance / rank) ** 0.5
        mean = deviation * torch.randn(
            self.size[side], 1 + rank, generator=self.generator, dtype=torch.float64
        )
        mean[:, 0] = 0
        covariance = deviation**2 * torch.eye(1 + rank, dtype=torch.float64)
        covariance[0, 0] = variance
        weight = torch.zeros(self.features[side].width, 1 + rank, dtype=torch.float64)
        prior = ContentPrior(weight, torch.zeros(1 + rank, dtype=torch.float64), covariance)
        self.prior[side] = prior.to(self.run.device, torch.float64)
        mean = mean.to(self.run.device, self.run.dtype)
        self.known[side] = Gaussians(mean, mean.new_zeros(*mean.shape, 1 + rank))


def _newcomers(adapted: Adapted) -> Newcomers:
    assert isinstance(adapted, Newcomers)
    return adapted


def _choices(train: Dataset) -> Dataset:
    """What was chosen, whatever was said of it then."""
    return replace(train, rating=torch.ones_like(train.rating), scale=RatingScale.for_implicit())


def _plain(value: Any) -> Any:
    """Nested mappings in place of named tuples."""
    if isinstance(value, tuple):
        value = value._asdict()  # type: ignore[attr-defined]
    return {name: _plain(part) for name, part in value.items()} if isinstance(value, Mapping) else value


def _sides(state: Mapping[str, Any]) -> tuple[dict[Side, ContentPrior], dict[Side, Gaussians]]:
    """Priors and known entities of a model's state."""
    return (
        {side: ContentPrior(**state["prior"][side]) for side in SIDES},
        {side: Gaussians(**state["known"][side]) for side in SIDES},
    )


def _features(train: Dataset, side: Side) -> Features:
    entities = train.entities(side)
    return entities.features if entities.features is not None else Features.empty(len(entities))


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """float []: tr(whole⁻¹ part)."""
    share: Tensor = torch.linalg.solve(whole, part).trace()
    return share


def _one_class(feature: Tensor, offset: Tensor, observed: float, unobserved: float) -> Observations:
    """What a chosen partner adds to what all partners have as unobserved: weight and target change."""
    weight = observed - unobserved
    target = (observed * (1 - offset) + unobserved * offset) / weight
    return Observations(feature, target, torch.full_like(offset, weight))


def _entity_factors(mean: float, entities: Tensor) -> Tensor:
    """float [T, d + 1]: whose dot product with a partner's factors is the mean rating."""
    return torch.cat([torch.ones_like(entities[:, :1]), mean + entities[:, :1], entities[:, 1:]], 1)


def _partner_factors(partners: Gaussians) -> Tensor:
    """float [P, d + 1]."""
    return torch.cat([partners.bias[:, None], partners.pattern], 1)


def _expected(mean: float, entities: Tensor, partners: Gaussians, partner: Tensor) -> Tensor:
    """float [n]: the mean rating of `entities` [n, d] for each `partner` [n]."""
    return mean + partners.bias[partner] + (entities * partners.pattern[partner]).sum(1)


def _unknown(entities: Gaussians, entity: Tensor, partners: Gaussians, partner: Tensor) -> Tensor:
    """float [n]: variance of the mean rating, from what is unknown of both sides."""
    left = torch.cat([entities.pattern_moment, entities.covariance.flatten(1)], 1)
    right = torch.cat([partners.covariance.flatten(1), _outer(partners.pattern)], 1)
    return _pairwise(left, entity, right, partner)


def _pairwise(left: Tensor, row: Tensor, right: Tensor, column: Tensor) -> Tensor:
    """float [n]: ``left[row] · right[column]``, with memory bounded by blocks."""
    blocks = [slice(start, start + PAIRS_AT_ONCE) for start in range(0, max(1, row.numel()), PAIRS_AT_ONCE)]
    return torch.cat([(left[row[block]] * right[column[block]]).sum(1) for block in blocks])


def _gathered(table: Tensor, index: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """float [T, …]: the weighted sum of each list's rows of a table."""
    return torch.nn.functional.embedding_bag(
        index, table, offsets, mode="sum", per_sample_weights=weight, include_last_offset=True
    )


def _outer(vectors: Tensor) -> Tensor:
    return (vectors[:, :, None] * vectors[:, None]).flatten(1)


def _solved_by(cholesky: Tensor, vectors: Tensor) -> Tensor:
    return torch.cholesky_solve(vectors[..., None], cholesky)[..., 0]


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `Bayesian`."""
    register(Bayesian)

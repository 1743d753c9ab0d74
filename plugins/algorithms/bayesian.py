"""The default: a hierarchical linear-Gaussian model with content priors on both sides."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple, Self

import torch
from torch import Tensor

from metarec import Range, hookimpl
from metarec.data import Dataset, Features, Side, partner_side
from metarec.learning import (
    Adapted,
    Algorithm,
    ContentPrior,
    Explanation,
    Prediction,
    Run,
    fit_content_prior,
)
from metarec.ops import gaussian_posterior, gaussian_update
from metarec.tasks import EntityRows, Query, Ragged, Support, Tasks

SIDES: tuple[Side, ...] = ("user", "item")
MOST_KNOTS = 20
RATINGS_PER_KNOT = 500
LEAST_VARIANCE = 1e-4
PAIRS_AT_ONCE = 1 << 16
PAIRS_FOR_NOISE = 1 << 17


@dataclass(frozen=True)
class Posterior(Adapted):
    """Of each task's entity: its bias and its factors, jointly Gaussian.

    Parameters
    ----------
    mean : float [T, 1 + rank]
    cholesky : float [T, 1 + rank, 1 + rank]
        Lower Cholesky factor of the precision.
    count : int64 [T]
        Ratings it rests on.
    side : "user" or "item"
    """

    mean: Tensor
    cholesky: Tensor
    count: Tensor
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


class Observations(NamedTuple):
    """What the ratings of a support say of its entities: ``target = feature · θ + N(0, 1 / precision)``."""

    feature: Tensor
    target: Tensor
    precision: Tensor


class Bayesian(Algorithm):
    r"""Bias and factors of users and items, Gaussian around what their attributes lead to expect.

    .. math::
        r_{ui} = \mu + b_u + b_i + u^\top v + \varepsilon, \qquad
        (b_u, u) \sim N(W_U f_u + c_U, \Sigma_U), \quad (b_i, v) \sim N(W_I f_i + c_I, \Sigma_I),
        \quad \varepsilon \sim N(0, \sigma^2(m))

    with f the attributes' features and m the expected rating: on most scales ratings near an end vary less, so the
    noise is a function of the mean, log-linear between knots. Such ratings are skewed too, and full weights
    :math:`1 / \sigma^2(m)` would trust them too much: posteriors take the noise half-way to its average,
    :math:`\tilde\sigma^2 = \sqrt{\sigma^2(m) \bar\sigma^2}`, predictions take it as it is.

    **Fit.** Variational EM with :math:`q = \prod_u q(b_u, u) \prod_i q(b_i, v)`: each factor is the exact Gaussian
    posterior given the other side's moments. The content priors are then fitted as `fit_content_prior` does, each
    entity weighted by its ratings, since that is how often a new one like it will be met.

    **Adapt and predict.** With :math:`\theta` the entity's bias and factors and :math:`\varphi = (1, v)` of a partner,

    .. math::
        \Lambda = \Sigma^{-1} + \sum_j w_j \varphi_j \varphi_j^\top, \qquad
        \hat\theta = \theta_0 + \Lambda^{-1} \sum_j w_j \varphi_j (r_j - \mu - b_j - \varphi_j^\top \theta_0)

    exactly, given the partners. What is not known of them counts by moment matching: with C the partner's covariance,
    :math:`1 / w = \tilde\sigma^2 + E[a^\top C a]` over the prior of :math:`a = (1, u)`, and the variance of a rating is
    :math:`\sigma^2 + \hat a^\top C \hat a + \hat\varphi^\top \Lambda^{-1} \hat\varphi + \mathrm{tr}(C \Lambda^{-1})`,
    the trace over the factors. The same holds with the sides swapped; a new partner has its content prior.

    **Implicit feedback** (Hu et al. 2008): what is in a support has target 1 and weight 1, what is not target 0 and
    weight `unobserved_weight`; θ is then the weighted ridge regression over all known partners, from one Gram matrix
    of them all. The item's bias is its popularity. An empty support says nothing at all: it keeps the prior. The
    weights make a pseudo-likelihood, so no variance is given.

    Parameters
    ----------
    rank : int, default 16
        Number of factors.
    iterations : int, default 8
        Sweeps of EM.
    unobserved_weight : float, default 0.2
        With implicit feedback, how much a partner that was not chosen counts beside one that was.

    References
    ----------
    Lim & Teh 2007, Variational Bayesian approach to movie rating prediction. Agarwal & Chen 2009, Regression-based
    latent factor models. Hu, Koren, Volinsky 2008, Collaborative filtering for implicit feedback datasets.
    """

    name = "bayesian"

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
        """Fit the factors of the known entities, then the content priors, then the factors under these."""
        unobserved = self.unobserved_weight if train.scale.implicit else 0.0
        em = VariationalEM(train, rank=self.rank, unobserved=unobserved, run=run)
        for epoch in run.epochs(self.iterations, f"fit {self.name}"):
            em.sweep()
            run.report(self, epoch, {"noise": float(em.noise.average)})
        em.fit_content_priors()
        self.implicit_ = train.scale.implicit
        self.mean_ = em.mean
        self.noise_ = em.noise._asdict()
        self.prior_ = {side: prior.to(run.device, run.dtype)._asdict() for side, prior in em.prior.items()}
        self.known_ = {side: known._asdict() for side, known in em.known.items()}
        self.background_ = {side: em.background(side)._asdict() for side in SIDES} if self.implicit_ else {}
        return self

    def adapt(self, support: Support) -> Posterior:
        """The posterior of each task's bias and factors."""
        observations = self._observations(support)
        mean, precision = self._start(support)
        posterior = gaussian_posterior(*observations, support.offsets, mean, precision)
        return Posterior(posterior.mean, posterior.cholesky, support.counts, support.side)

    def predict(self, adapted: Adapted, query: Query) -> Prediction:
        """Mean and variance of each rating; with implicit feedback a score."""
        assert isinstance(adapted, Posterior)
        partners, partner = self._met(adapted.side, query)
        mean = _expected(self.mean_, adapted.mean[query.owner], partners, partner)
        if self.implicit_:
            return Prediction(mean)
        entities = Gaussians(adapted.mean, torch.cholesky_inverse(adapted.cholesky))
        unknown = _unknown(entities, query.owner, partners, partner)
        noise = Noise(**self.noise_)(mean)
        return Prediction(mean, noise + unknown, noise)

    def log_evidence(self, support: Support) -> Tensor:
        """float [T]: log density of each task's ratings before any of them is known."""
        mean, precision = self._start(support)
        return gaussian_posterior(*self._observations(support), support.offsets, mean, precision).log_evidence

    def query_factors(self, adapted: Adapted) -> Tensor:
        """float [T, rank + 2]: ``(1, μ + bias, factors)``."""
        assert isinstance(adapted, Posterior)
        return _entity_factors(self.mean_, adapted.mean)

    def candidate_factors(self, side: Side, partners: EntityRows) -> Tensor:
        """float [P, rank + 2]: ``(bias, 1, factors)``."""
        return _partner_factors(self._entities(partner_side(side), partners))

    def absorb(self, adapted: Adapted, rating: Support) -> Posterior:
        """One more rating per task, in O(rank²)."""
        assert isinstance(adapted, Posterior)
        updated = self._updated(adapted, rating, 1)
        return self._where(adapted.count == 0, self.adapt(rating), updated) if self.implicit_ else updated

    def forget(self, adapted: Adapted, rating: Support) -> Posterior:
        """One rating less per task, in O(rank²)."""
        assert isinstance(adapted, Posterior)
        updated = self._updated(adapted, rating, -1)
        return (
            self._where(updated.count == 0, self.adapt(rating.first(0)), updated)
            if self.implicit_
            else updated
        )

    def explain(self, adapted: Adapted, support: Support, query: Query) -> Explanation:
        r"""Rating j adds :math:`w_j \varphi^\top \Lambda^{-1} \varphi_j (r_j - \mu - b_j - \varphi_j^\top \theta_0)`.

        With implicit feedback what was not chosen counts too; each of the support's has an equal share of that.
        """
        assert isinstance(adapted, Posterior)
        observations = self._observations(support)
        prior = self._prior(support.side).mean(support.entities.features)
        expected = (observations.feature * prior[support.owner]).sum(1)
        push = observations.feature * (observations.precision * (observations.target - expected))[:, None]
        if self.implicit_:
            background = self._background_push(support.side, prior) / support.counts[:, None]
            push = push + background[support.owner]
        partners, partner = self._met(support.side, query)
        pattern = partners.pattern[partner]
        pull = torch.cholesky_solve(pattern[..., None], adapted.cholesky[query.owner])[..., 0]
        offsets, entries = support.entries(query.owner)
        asked = torch.repeat_interleave(torch.arange(len(pull), device=pull.device), offsets.diff())
        return Explanation(
            baseline=_expected(self.mean_, prior[query.owner], partners, partner),
            offsets=offsets,
            contribution=(pull[asked] * push[entries]).sum(1),
            kind="additive",
        )

    def _prior(self, side: Side) -> ContentPrior:
        return ContentPrior(**self.prior_[side])

    def _entities(self, side: Side, entities: EntityRows) -> Gaussians:
        """What is known of entities as partners: what `fit` made of their ratings, or of new ones the prior."""
        known, prior = Gaussians(**self.known_[side]), self._prior(side)
        new, rows = entities.rows < 0, entities.rows.clamp(min=0)
        mean, covariance = known.mean[rows], known.covariance[rows]
        if new.any():
            mean = torch.where(new[:, None], prior.mean(entities.features), mean)
            covariance = torch.where(new[:, None, None], prior.covariance, covariance)
        return Gaussians(mean, covariance)

    def _met(self, side: Side, lists: Support | Query) -> tuple[Gaussians, Tensor]:
        """The partners that tasks on `side` name, and each entry's among them."""
        named, partner = torch.unique(lists.partner, return_inverse=True)
        return self._entities(partner_side(side), lists.partners.select(named)), partner

    def _observations(self, support: Support) -> Observations:
        prior = self._prior(support.side)
        partners, partner = self._met(support.side, support)
        feature = partners.pattern[partner]
        offset = self.mean_ + partners.bias[partner]
        if self.implicit_:
            observed, unobserved = self._background(support.side).weights.tolist()
            return _one_class(feature, offset, observed, unobserved)
        entities = Gaussians(
            prior.mean(support.entities.features), prior.covariance.expand(len(support), -1, -1)
        )
        noise = Noise(**self.noise_).tempered(offset + (feature * entities.mean[support.owner]).sum(1))
        unknown = _pairwise(partners.covariance.flatten(1), partner, entities.pattern_moment, support.owner)
        return Observations(feature, support.rating - offset, 1 / (noise + unknown))

    def _start(self, support: Support) -> tuple[Tensor, Tensor]:
        """Mean [T, d] and precision ([d, d] or [T, d, d]) before the ratings themselves."""
        prior = self._prior(support.side)
        mean = prior.mean(support.entities.features)
        precision = torch.cholesky_inverse(torch.linalg.cholesky(prior.covariance))
        if not self.implicit_:
            return mean, precision
        some = (support.counts > 0).to(mean.dtype)[:, None]
        precision = precision + some[..., None] * self._background(support.side).precision
        push = some * self._background_push(support.side, mean)
        return mean + torch.linalg.solve(precision, push[..., None])[..., 0], precision

    def _background_push(self, side: Side, prior: Tensor) -> Tensor:
        """float [T, d]: how what was not chosen moves the prior means, in units of precision."""
        background = self._background(side)
        return background.shift - prior @ background.precision

    def _background(self, side: Side) -> Background:
        return Background(**self.background_[side])

    def _updated(self, adapted: Posterior, rating: Support, sign: int) -> Posterior:
        feature, target, precision = self._observations(rating)
        mean, cholesky = gaussian_update(adapted.mean, adapted.cholesky, feature, target, sign * precision)
        return replace(adapted, mean=mean, cholesky=cholesky, count=adapted.count + sign)

    @staticmethod
    def _where(chosen: Tensor, these: Posterior, others: Posterior) -> Posterior:
        return replace(
            others,
            mean=torch.where(chosen[:, None], these.mean, others.mean),
            cholesky=torch.where(chosen[:, None, None], these.cholesky, others.cholesky),
        )


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
    """What all of an implicit entity's unobserved partners say: a precision [d, d], a shift [d] and the two weights."""

    precision: Tensor
    shift: Tensor
    weights: Tensor


class VariationalEM:
    """The state of the fit: the factorised posterior, the priors and the noise.

    Parameters
    ----------
    train : Dataset
    rank : int
    unobserved : float
        Weight of a pair without a rating, as a share of one with; 0 where feedback is explicit.
    run : Run
    """

    def __init__(self, train: Dataset, *, rank: int, unobserved: float, run: Run) -> None:
        self.run = run
        self.unobserved = unobserved
        self.generator = torch.Generator().manual_seed(run.seed)
        self.rating = train.rating.to(run.device, run.dtype)
        self.row = {side: train.rows(side).long().to(run.device) for side in SIDES}
        self.size = {side: len(train.entities(side)) for side in SIDES}
        self.lists = {side: Ragged.grouped(self.row[side], self.size[side]) for side in SIDES}
        self.features = {side: _features(train, side) for side in SIDES}
        share = train.rating.numel() / (self.size["user"] * self.size["item"])
        self.mean = share if unobserved else float(train.rating.mean(dtype=torch.float64))
        total = share if unobserved else float(train.rating.double().var(correction=0))
        total = max(total, LEAST_VARIANCE)
        self.noise = Noise.constant(self.rating.new_tensor(0.6 * total))
        self.precision = 1 / self.noise(self.rating)
        self.prior: dict[Side, ContentPrior] = {}
        self.known: dict[Side, Gaussians] = {}
        self.natural: dict[Side, tuple[Tensor, Tensor]] = {}
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
        inverse = _inverse(prior.covariance)
        precision = inverse + unknown.view(-1, *inverse.shape)
        natural = prior.mean(self.features[side]) @ inverse
        shift = -_gathered(partners.pattern_with_bias, partner, lists.offsets, observations.precision)
        if self.unobserved:
            background = self.background(side)
            precision, shift = precision + background.precision, shift + background.shift
        posterior = gaussian_posterior(
            *observations, lists.offsets, _solved(precision, natural + shift), precision
        )
        total = posterior.cholesky @ posterior.cholesky.mT
        self.known[side] = Gaussians(posterior.mean, torch.cholesky_inverse(posterior.cholesky))
        self.natural[side] = (total - inverse, (total @ posterior.mean[..., None])[..., 0] - natural)

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
            precision, shift = (part.cpu() for part in self.natural[side])
            self.prior[side] = fit_content_prior(
                self.features[side].to("cpu"),
                precision,
                shift,
                self.lists[side].counts.cpu(),
                self.prior[side].covariance.cpu(),
                self.generator,
            ).to(self.run.device, torch.float64)
        for side in SIDES:
            self.update(side)
        self.update_noise()

    def background(self, side: Side) -> Background:
        """What an implicit entity on `side` has of all its partners together, chosen or not."""
        partners = self.known[partner_side(side)]
        observed = float(self.precision[0])
        weight = self.unobserved * observed
        pattern = partners.pattern
        moment = partners.pattern_moment.sum(0).view(pattern.shape[1], -1)
        shift = pattern.mT @ (self.mean + partners.bias) + partners.pattern_with_bias.sum(0)
        return Background(weight * moment, -weight * shift, moment.new_tensor([observed, weight]))

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
        inverse = _inverse(prior.covariance)
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


def _features(train: Dataset, side: Side) -> Features:
    entities = train.entities(side)
    return entities.features if entities.features is not None else Features.empty(len(entities))


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


def _inverse(matrices: Tensor) -> Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(matrices))


def _solved(matrices: Tensor, vectors: Tensor) -> Tensor:
    return torch.cholesky_solve(vectors[..., None], torch.linalg.cholesky(matrices))[..., 0]


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `Bayesian`."""
    register(Bayesian)

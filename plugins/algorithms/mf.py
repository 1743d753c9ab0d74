"""Matrix factorisation with biases, and newcomers folded in by ridge regression."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, NamedTuple, Self

import torch
from torch import Tensor

from metarec import Range, hookimpl
from metarec.data import SIDES, Dataset, Side, partner_side
from metarec.learning import Adapted, Algorithm, Descent, Prediction, Run
from metarec.learning.factorisation import factorise, pattern, standardisation
from metarec.ops import gaussian_posterior
from metarec.tasks import EntityRows, Query, Ragged, Support, Tasks
from metarec.testing.oracles.check import Check, distance, fitted, tasks_of
from metarec.testing.oracles.factorisation import descended, everything
from metarec.testing.world import small_world

LEAST_VARIANCE = 1e-6


@dataclass(frozen=True)
class FoldedIn(Adapted):
    """Bias and factors of each task's entity.

    Parameters
    ----------
    mean : float [T, 1 + rank]
    cholesky : float [T, 1 + rank, 1 + rank]
        Lower Cholesky factor of their precision.
    side : "user" or "item"
    """

    mean: Tensor
    cholesky: Tensor
    side: Side


class Observations(NamedTuple):
    """What ratings say of their task's entity.

    Parameters
    ----------
    feature : float [n, 1 + rank]
        φ of the partner.
    residual : float [n]
        The rating beside the partner's bias.
    precision : float [n]
    ridge : float [n]
        What the rating adds to the precision of each component.
    """

    feature: Tensor
    residual: Tensor
    precision: Tensor
    ridge: Tensor


class MatrixFactorisation(Algorithm):
    """``r = μ + b_u + b_i + uᵀv``, fitted by stochastic gradient descent, with newcomers by ridge regression.

    **Fit.** Descent on half the squared errors of the standardised ratings with a penalty, as `factorise` does; each
    row ends as the ridge regression of its n ratings on the other side's rows, with n λ for the ridge.

    **Adapt.** With the other side's rows fixed and φ = (1, v) of a partner, bias and factors θ of a task's entity are
    the same ridge regression, with what the known entities are like before the first rating,

        θ̂ = Λ⁻¹ (Σ⁻¹ m + Σ_j φ_j (r_j − b_j)/σ²),   Λ = Σ⁻¹ + Σ_j (φ_j φ_jᵀ + λ I)/σ²,

    where m and Σ are the mean and the covariance of the known entities' θ, by a few steps of EM, and σ² is the error of
    held-out ratings. The λ of each rating stands for what is not known of its partner. An entity that `fit` knows is
    folded in like a new one. A rating's variance is σ² + φᵀ Λ⁻¹ φ. A partner that is new was met in a rating, and those
    that have many ratings are met more often: it has the mean and the covariance C of the training ratings' partners,
    and its ratings have no λ, but vary by E[aᵀ C a] more, with a = (1, u) of those that it may meet. Attributes are not
    used.

    Parameters
    ----------
    descent : Descent
        How users and items get their factors.
    iterations : int, default 5
        Steps of EM for m and Σ.

    References
    ----------
    Koren, Bell, Volinsky 2009. Matrix factorization techniques for recommender systems. Zhou, Wilkinson, Schreiber, Pan
    2008. Large-scale parallel collaborative filtering for the Netflix prize (the ridge of n λ).
    """

    name = "mf"
    feedback = ("explicit",)

    def __init__(
        self, *, descent: Descent = Descent(), iterations: Annotated[int, Range(1, 1000)] = 5
    ) -> None:
        self.descent = descent
        self.iterations = iterations

    def fit(self, train: Dataset, *, valid: Tasks | None = None, run: Run = Run()) -> Self:
        """Fit the factors of both sides, then what newcomers are like."""
        self.mean_, self.deviation_ = standardisation(train)
        found = factorise(
            train,
            self.descent,
            "dot",
            run=run,
            report=lambda epoch, values: run.report(self, epoch, values),
        )
        self.known_ = {"user": found.user, "item": found.item}
        self.noise_ = max(found.error, LEAST_VARIANCE)
        self.prior_mean_ = {side: self.known_[side].mean(0) for side in SIDES}
        self.prior_covariance_ = {side: found.user.new_ones(found.user.shape[1]).diag() for side in SIDES}
        met = {side: self._fit_prior(train, side) for side in SIDES}
        self.met_mean_ = {side: mean for side, (mean, _) in met.items()}
        self.noise_of_new_ = {side: self._noise_of_new(side, met[partner_side(side)][1]) for side in SIDES}
        return self

    def adapt(self, support: Support) -> FoldedIn:
        """The ridge regression of each task."""
        return self._folded_in(support.side, self._observations(support), support.offsets)

    def predict(self, adapted: Adapted, query: Query) -> Prediction:
        """Mean and variance of each rating."""
        found = _folded_in(adapted)
        partners = self._partners(found.side, query.partners)
        features = pattern(partners).index_select(0, query.partner)
        mean = partners[query.partner, 0] + (found.mean[query.owner] * features).sum(1)
        half = torch.linalg.solve_triangular(found.cholesky[query.owner], features.unsqueeze(2), upper=False)
        scale = self.deviation_**2
        unknown = half.square().sum((1, 2)) + self._noise(found.side, query, query.partners)
        noise = torch.full_like(mean, scale * self.noise_)
        return Prediction(self.mean_ + self.deviation_ * mean, scale * unknown, noise)

    def query_factors(self, adapted: Adapted) -> Tensor:
        """float [T, rank + 2]: ``(1, μ + bias, factors)``, in units of the rating."""
        factors = self.deviation_ * _folded_in(adapted).mean
        factors[:, 0] += self.mean_
        return torch.cat([torch.ones_like(factors[:, :1]), factors], 1)

    def candidate_factors(self, side: Side, partners: EntityRows) -> Tensor:
        """float [P, rank + 2]: ``(bias, 1, factors)``."""
        vectors = self._partners(side, partners)
        return torch.cat([self.deviation_ * vectors[:, :1], pattern(vectors)], 1)

    def absorb(self, adapted: Adapted, rating: Support) -> FoldedIn:
        """One more rating per task, in O(rank³)."""
        return self._updated(_folded_in(adapted), rating, 1)

    def forget(self, adapted: Adapted, rating: Support) -> FoldedIn:
        """One rating less per task, in O(rank³)."""
        return self._updated(_folded_in(adapted), rating, -1)

    @classmethod
    def oracles(cls) -> Iterator[Check]:
        """Folding in is a ridge regression by least squares, the same at which descent ends."""
        learner = fitted(cls, {"descent": Descent(rank=3, epochs=10, learning_rate=0.05)})
        for scenario in ("new-user", "new-item"):
            tasks = tasks_of(scenario)
            prediction = learner.predict(learner.adapt(tasks.support), tasks.query)
            mean, variance = learner._by_least_squares(tasks)
            assert prediction.variance is not None
            yield Check(f"mean by least squares ({scenario})", distance(prediction.mean, mean), 1e-10)
            error = distance(prediction.variance, variance)
            yield Check(f"variance by least squares ({scenario})", error, 1e-10)
        train, learner = (
            small_world().split.train,
            fitted(cls, {"descent": Descent(rank=2, epochs=1, l2=0.1)}),
        )
        ends = descended(train, learner.descent)
        learner.known_ = {side: ends[side] for side in SIDES}
        learner.prior_covariance_ = {side: 1e9 * torch.eye(3, dtype=torch.float64) for side in SIDES}
        for side, rows in ends.items():
            error = distance(learner.adapt(everything(train, side)).mean, rows)
            yield Check(
                f"a prior that says nothing leaves the rows at which descent ends ({side})", error, 2e-3
            )

    def _by_least_squares(self, tasks: Tasks) -> tuple[Tensor, Tensor]:
        """Mean and variance of the query, task by task, where all partners are known.

        The prior is as good as ratings of its mean for the rows of a root of its precision, and the λ of each rating as
        a rating of 0 for √λ times each unit vector.
        """
        support, query, side = tasks.support, tasks.query, tasks.support.side
        known, prior = self.known_[partner_side(side)], self.prior_mean_[side]
        root = torch.linalg.cholesky(torch.linalg.inv(self.prior_covariance_[side])).T
        means, variances = [], []
        for task in range(len(tasks)):
            seen = known[support.partners.rows[support.partner[support.owner == task]]]
            rating = (support.rating[support.owner == task] - self.mean_) / self.deviation_
            ridge = torch.eye(len(prior)).to(root) * (self.descent.l2 * len(rating) / self.noise_) ** 0.5
            left = torch.cat([root, pattern(seen) / self.noise_**0.5, ridge])
            target = [root @ prior, (rating - seen[:, 0]) / self.noise_**0.5, torch.zeros_like(prior)]
            inverse = torch.linalg.pinv(left)
            asked = known[query.partners.rows[query.partner[query.owner == task]]]
            means.append(asked[:, 0] + pattern(asked) @ (inverse @ torch.cat(target)))
            variances.append((pattern(asked) @ inverse).square().sum(1) + self.noise_)
        return self.mean_ + self.deviation_ * torch.cat(means), self.deviation_**2 * torch.cat(variances)

    def _partners(self, side: Side, partners: EntityRows) -> Tensor:
        """float [P, 1 + rank]: bias and factors of the partners of tasks on `side`."""
        other = partner_side(side)
        known = self.known_[other].index_select(0, partners.rows.clamp(min=0))
        return torch.where((partners.rows >= 0).unsqueeze(1), known, self.met_mean_[other])

    def _noise(self, side: Side, lists: Ragged, partners: EntityRows) -> Tensor:
        """float [n]: variance of each entry's rating, given its task's entity."""
        new = (partners.rows < 0).to(self.prior_mean_[side].dtype)
        return (self.noise_ + self.noise_of_new_[side] * new)[lists.partner]

    def _observations(self, support: Support) -> Observations:
        """What the ratings of a support say."""
        partners = self._partners(support.side, support.partners).index_select(0, support.partner)
        residual = (support.rating - self.mean_) / self.deviation_ - partners[:, 0]
        precision = 1 / self._noise(support.side, support, support.partners)
        known = support.partners.rows[support.partner] >= 0
        return Observations(pattern(partners), residual, precision, self.descent.l2 * precision * known)

    def _folded_in(self, side: Side, observations: Observations, offsets: Tensor) -> FoldedIn:
        inverse = torch.linalg.inv(self.prior_covariance_[side])
        ridge = torch.segment_reduce(observations.ridge, "sum", offsets=offsets, axis=0, unsafe=True)
        precision = inverse + ridge.unsqueeze(1).expand(-1, len(inverse)).diag_embed()
        mean = torch.linalg.solve(precision, inverse @ self.prior_mean_[side])
        posterior = gaussian_posterior(
            observations.feature, observations.residual, observations.precision, offsets, mean, precision
        )
        return FoldedIn(posterior.mean, posterior.cholesky, side)

    def _fit_prior(self, train: Dataset, side: Side) -> tuple[Tensor, Tensor]:
        """Fit m and Σ, under which the known entities' ratings are likeliest, the other side fixed.

        Give the mean and the covariance of the entity in a training rating drawn at random.
        """
        known = self.known_[partner_side(side)]
        lists = Ragged.grouped(train.rows(side).long(), len(train.entities(side)))
        partners = known[train.rows(partner_side(side)).long()[lists.partner].to(known.device)]
        rating = (train.rating[lists.partner].to(known) - self.mean_) / self.deviation_
        precision = torch.full_like(rating, 1 / self.noise_)
        observations = Observations(
            pattern(partners), rating - partners[:, 0], precision, self.descent.l2 * precision
        )
        for _ in range(self.iterations):
            found = self._folded_in(side, observations, lists.offsets.to(known.device))
            alike = torch.full_like(found.mean[:, 0], 1 / len(found.mean))
            self.prior_mean_[side], self.prior_covariance_[side] = _moments(found, alike)
        return _moments(found, (lists.counts / lists.partner.numel()).to(known))

    def _noise_of_new(self, side: Side, met: Tensor) -> float:
        """How much more ratings of a new partner, of covariance `met`, vary for a new entity of `side`."""
        mean = pattern(self.prior_mean_[side][None])[0]
        moment = torch.outer(mean, mean)
        moment[1:, 1:] += self.prior_covariance_[side][1:, 1:]
        return float((met * moment).sum())

    def _updated(self, found: FoldedIn, rating: Support, sign: int) -> FoldedIn:
        features, residual, precision, ridge = self._observations(rating)
        before = found.cholesky @ found.cholesky.mT
        gram = precision[:, None, None] * features.unsqueeze(2) * features.unsqueeze(1)
        after = before + sign * (gram + ridge.unsqueeze(1).expand_as(features).diag_embed())
        shift = (before @ found.mean.unsqueeze(2)).squeeze(2) + (sign * precision * residual)[
            :, None
        ] * features
        cholesky = torch.linalg.cholesky(after)
        return FoldedIn(torch.cholesky_solve(shift.unsqueeze(2), cholesky).squeeze(2), cholesky, found.side)


def _moments(entities: FoldedIn, share: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the bias and factors of an entity that is drawn by `share` (float [T], of sum 1)."""
    mean = (share[:, None] * entities.mean).sum(0)
    away = entities.mean - mean
    left_open = (share[:, None, None] * torch.cholesky_inverse(entities.cholesky)).sum(0)
    covariance = left_open + away.mT @ (share[:, None] * away)
    return mean, (covariance + covariance.mT) / 2


def _folded_in(adapted: Adapted) -> FoldedIn:
    assert isinstance(adapted, FoldedIn)
    return adapted


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `MatrixFactorisation`."""
    register(MatrixFactorisation)

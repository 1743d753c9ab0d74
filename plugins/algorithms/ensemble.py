"""Ensemble: the predictions of several algorithms, weighted by how newcomers were served."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal

from metarec import (
    Adapted,
    Algorithm,
    Dataset,
    Prediction,
    Query,
    Run,
    Support,
    Tasks,
    create_algorithm,
    hookimpl,
    split,
)
from metarec.data import Side
from metarec.errors import ConfigError
from metarec.learning import Explanation, leave_one_out
from metarec.tasks import SCENARIOS, Cell
from metarec.testing.oracles.check import Check, distance, fitted, tasks_of

SIZES = (0, 1, 2, 4, 8, 16, 32, 64, "all")


@dataclass(frozen=True)
class Parts:
    """What each member made of the supports."""

    members: tuple[Adapted, ...]

    def select(self, tasks: Tensor) -> Self:
        """Those of these tasks (int64 [M]), in that order."""
        return type(self)(tuple(part.select(tasks) for part in self.members))

    def to(self, device: torch.device | str | None = None) -> Self:
        """The same on `device`."""
        return type(self)(tuple(part.to(device) for part in self.members))


@dataclass(frozen=True)
class AdaptedMembers(Adapted):
    """Each task's members, and what decides on their weights.

    Parameters
    ----------
    parts : Parts
    count : int64 [T]
        Ratings in the support.
    known : bool [T]
        Whether the task's entity is known.
    side : "user" or "item"
    """

    parts: Parts
    count: Tensor
    known: Tensor
    side: Side


class Ensemble(Algorithm):
    """The predictions of several algorithms, weighted by how newcomers were served.

    The mean is ``Σ w_m μ_m`` with weights of at least 0 that sum to 1. A share of the known users and items is taken
    for newcomers, as protocol `cold-start` does, and the members are fitted to the rest; in each scenario and at each
    support size the weights are those that have the least squared error there: the minimum of ``wᵀEw``, where E holds
    the mean products of the members' errors. Between the sizes they are interpolated in log(1 + n). Then the members
    are fitted again, to everything.

    The variance is that of the mixture, ``Σ w_m (v_m + μ_m²) − (Σ w_m μ_m)²``. A member that gives none is taken to be
    as far off as it was on average where the weights were learnt, ``v_m = E_mm``.

    Choices are not for it: the scores that algorithms give them have no common unit to be summed in.

    Parameters
    ----------
    algorithms : list of str, default "bayesian", "alpaca" and "meta-content"
        Names of two or more algorithms that answer in all scenarios; they have their default options.

    References
    ----------
    Bates, Granger 1969. The combination of forecasts. Breiman 1996. Stacked regressions, section 4.
    """

    name = "ensemble"
    feedback = ("explicit",)

    def __init__(
        self,
        *,
        algorithms: Annotated[tuple[str, ...], Field(min_length=2)] = ("bayesian", "alpaca", "meta-content"),
    ) -> None:
        self.algorithms = algorithms

    def fit(self, train: Dataset, *, valid: Tasks | None = None, run: Run = Run()) -> Self:
        """Learn the weights on known entities that are taken for new ones, then the members on all.

        Raises
        ------
        ConfigError
            A member is unknown, named twice, or cannot answer in a scenario.
        """
        trial = self._members()
        cut = split(train, "cold-start", seed=run.seed, support_sizes=SIZES, min_support=1, min_query=1)
        for member in trial.values():
            member.fit(cut.train, run=run)
        self.sizes_, self.weights_, self.errors_ = {}, {}, {}
        for scenario in SCENARIOS:
            cells = [cell for cell in cut.cells if cell.scenario == scenario]
            sizes = [_log_size(cell.tasks.support.counts).mean() for cell in cells]
            products = [_error_products(trial.values(), cell, run) for cell in cells]
            if not cells:  # too few newcomers: all members alike, and as far off as the mean is
                sizes = [torch.zeros((), dtype=torch.float64)]
                products = [
                    train.rating.double().var(correction=0) * torch.eye(len(trial), dtype=torch.float64)
                ]
            self.sizes_[scenario] = torch.stack(sizes).to(run.device)
            self.weights_[scenario] = torch.stack([*map(simplex_weights, products)]).to(run.device)
            self.errors_[scenario] = torch.stack(products).diagonal(dim1=1, dim2=2).to(run.device)
        self.members_ = {
            name: member.fit(train, valid=valid, run=run) for name, member in self._members().items()
        }
        return self

    @torch.no_grad()
    def adapt(self, support: Support) -> AdaptedMembers:
        """What each member makes of the supports."""
        parts = Parts(tuple(member.adapt(support) for member in self.members_.values()))
        return AdaptedMembers(parts, support.counts, support.entities.rows >= 0, support.side)

    @torch.no_grad()
    def predict(self, adapted: Adapted, query: Query) -> Prediction:
        """The members' weighted mean, and the variance of their mixture."""
        assert isinstance(adapted, AdaptedMembers)
        members = zip(self.members_.values(), adapted.parts.members, strict=True)
        predictions = [member.predict(part, query) for member, part in members]
        means = torch.stack([prediction.mean for prediction in predictions], 1)
        weights = self._at(self.weights_, adapted, query).to(means.dtype)
        mean = (weights * means).sum(1)
        spread = (means - mean.unsqueeze(1)).square()
        variance = (weights * (self._variances(predictions, adapted, query) + spread)).sum(1)
        noises = [prediction.noise for prediction in predictions if prediction.noise is not None]
        noise = (weights * torch.stack(noises, 1)).sum(1) if len(noises) == len(predictions) else None
        return Prediction(mean, variance, noise)

    def explain(self, adapted: Adapted, support: Support, query: Query) -> Explanation:
        """The mean less what the members, and their weights, make of the rest of the support."""
        return leave_one_out(self, adapted, support, query)

    @classmethod
    def oracles(cls) -> Iterator[Check]:
        """No slope invites to move the weights; and the prediction is the mixture of members that are fitted alone."""
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            errors = torch.randn(40, 5, generator=generator, dtype=torch.float64).cumsum(1)
            products = errors.mT @ errors / 40
            weights = simplex_weights(products)
            # Karush, Kuhn, Tucker: where there is weight, the slope is the least of all.
            slope = products @ weights
            steep = float((weights * (slope - slope.min())).max())
            error = max(steep, float(-weights.min()), abs(float(weights.sum()) - 1))
            yield Check(f"weights are the least squares on the simplex (draw {seed})", error, 1e-10)
        learner = fitted(cls, {"algorithms": ("bias", "entity-mean", "global-mean")})
        members = [fitted(type(member), {}) for member in learner.members_.values()]
        for scenario in SCENARIOS:
            tasks = tasks_of(scenario)
            found = learner.predict(learner.adapt(tasks.support), tasks.query)
            parts = [member.predict(member.adapt(tasks.support), tasks.query) for member in members]
            sizes, knots = learner.sizes_[scenario].numpy(), learner.weights_[scenario].numpy()
            at = np.log1p(tasks.support.counts.numpy())[tasks.query.owner.numpy()]
            weight = torch.from_numpy(np.stack([np.interp(at, sizes, column) for column in knots.T], 1))
            law = MixtureSameFamily(
                Categorical(weight),
                Normal(
                    torch.stack([part.mean for part in parts], 1),
                    torch.stack([part.variance for part in parts if part.variance is not None], 1).sqrt(),
                ),
            )
            yield Check(f"mean of the members' mixture ({scenario})", distance(found.mean, law.mean), 1e-10)
            assert found.variance is not None
            error = distance(found.variance, law.variance)
            yield Check(f"variance of the members' mixture ({scenario})", error, 1e-10)

    def state(self) -> dict[str, Any]:
        """What `fit` learnt, each member as a mapping."""
        learnt = super().state()
        if "members_" not in learnt:
            return learnt
        return {**learnt, "members_": {name: member.state() for name, member in self.members_.items()}}

    def restore(self, state: Mapping[str, Any]) -> Self:
        """Take up what another instance's `state` holds; return self."""
        members = {name: create_algorithm(name).restore(part) for name, part in state["members_"].items()}
        return super().restore({**state, "members_": members})

    def _members(self) -> dict[str, Algorithm]:
        members = {name: create_algorithm(name) for name in self.algorithms}
        if len(members) < len(self.algorithms):
            raise ConfigError(f"algorithm 'ensemble': a name stands twice in {', '.join(self.algorithms)}")
        for name, member in members.items():
            lacking = [scenario for scenario in SCENARIOS if scenario not in member.scenarios]
            if lacking:
                raise ConfigError(
                    f"algorithm 'ensemble': {name!r} cannot answer in {', '.join(lacking)}, as a member must"
                )
        return members

    def _variances(self, predictions: list[Prediction], adapted: AdaptedMembers, query: Query) -> Tensor:
        """float [n, members]: those that members give, and the mean squared errors of members that give none."""
        given = [prediction.variance for prediction in predictions]
        if any(variance is None for variance in given):
            errors = self._at(self.errors_, adapted, query).to(predictions[0].mean.dtype).unbind(1)
            given = [
                error if variance is None else variance for variance, error in zip(given, errors, strict=True)
            ]
        return torch.stack([variance for variance in given if variance is not None], 1)

    def _at(self, values: Mapping[str, Tensor], adapted: AdaptedMembers, query: Query) -> Tensor:
        """float64 [n, members]: what `values` hold of each query partner's scenario, at the size of its support."""
        entity = adapted.known[query.owner]
        partner = (query.partners.rows >= 0).index_select(0, query.partner)
        user, item = (entity, partner) if adapted.side == "user" else (partner, entity)
        size = _log_size(adapted.count)[query.owner]
        found = {name: _interpolated(self.sizes_[name], values[name], size) for name in SCENARIOS}
        of_known = torch.where(user.unsqueeze(1), found["warm"], found["new-user"])
        of_new = torch.where(user.unsqueeze(1), found["new-item"], found["new-both"])
        return torch.where(item.unsqueeze(1), of_known, of_new)


def simplex_weights(products: Tensor) -> Tensor:
    """The weights w ≥ 0 with Σ w = 1 that minimise ``wᵀEw``, float64 [M], by exact steps between pairs.

    Each step moves weight from the member where the slope is greatest to that where it is least, as far as is best.

    Parameters
    ----------
    products : float64 [M, M]
        E, positive semidefinite.
    """
    weights = products.new_full((len(products),), 1 / len(products))
    for _ in range(10_000):
        slope = products @ weights
        to, away = int(slope.argmin()), int(slope.where(weights > 0, -torch.inf).argmax())
        gap = float(slope[away] - slope[to])
        if gap <= 1e-12 * float(products.diagonal().max()):
            break
        curvature = float(products[to, to] + products[away, away] - 2 * products[to, away])
        step = min(float(weights[away]), gap / curvature if curvature > 0 else 1.0)
        weights[to] += step
        weights[away] -= step
    return weights


@torch.no_grad()
def _error_products(members: Iterable[Algorithm], cell: Cell, run: Run) -> Tensor:
    """float64 [M, M]: mean products of the members' errors."""
    tasks = cell.tasks
    support, query = tasks.support.to(run.device, run.dtype), tasks.query.to(run.device, run.dtype)
    rating = tasks.rating.to(run.device, torch.float64)
    means = [member.predict(member.adapt(support), query).mean for member in members]
    errors = torch.stack(means, 1).double() - rating.unsqueeze(1)
    return (errors.mT @ errors / len(errors)).cpu()


def _log_size(count: Tensor) -> Tensor:
    return torch.log1p(count.double())


def _interpolated(knots: Tensor, values: Tensor, at: Tensor) -> Tensor:
    """float64 [n, M]: linear between rising `knots` ([k]) with `values` ([k, M]), constant outside."""
    right = torch.searchsorted(knots, at).clamp(1, max(len(knots) - 1, 1)).clamp(max=len(knots) - 1)
    left = (right - 1).clamp(min=0)
    width = (knots[right] - knots[left]).clamp(min=1e-9)
    share = ((at - knots[left]) / width).clamp(0, 1).unsqueeze(1)
    return (1 - share) * values[left] + share * values[right]


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `Ensemble`."""
    register(Ensemble)

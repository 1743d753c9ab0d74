"""Weighted matrix factorisation of what was chosen, by alternating least squares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Self

import torch
from torch import Tensor

from metarec import Range, hookimpl
from metarec.data import Dataset, Side, partner_side
from metarec.learning import Adapted, Algorithm, Explanation, Prediction, Run
from metarec.ops import GaussianPosterior, gaussian_posterior, gaussian_update
from metarec.tasks import EntityRows, Query, Ragged, Support, Tasks
from metarec.testing.oracles.check import Check, distance, fitted, tasks_of
from metarec.testing.world import small_world


@dataclass(frozen=True)
class Folded(Adapted):
    """The factors of each task's entity.

    Parameters
    ----------
    factors : float [T, rank]
    cholesky : float [T, rank, rank]
        Lower Cholesky factor of Λ.
    side : "user" or "item"
    """

    factors: Tensor
    cholesky: Tensor
    side: Side


class IALS(Algorithm):
    """Factors x of users and y of items whose products are near 1 where an item was chosen and near 0 elsewhere.

    The sum over *all* pairs ``Σ c_ui (p_ui − x_uᵀ y_i)² + λ (Σ ‖x_u‖² + Σ ‖y_i‖²)``, with p = 1 and c = `confidence`
    where i was chosen and p = 0 and c = 1 elsewhere, is minimised in the users' factors and the items' in turn. For a
    user who chose the items S,

        Λ = YᵀY + λI + (c − 1) Σ_S y yᵀ,   x = Λ⁻¹ c Σ_S y,

    with one Gram matrix YᵀY for all users. A new user is folded in by the same formula, which is exact given the items.
    A partner that is new has no factors: its score is 0, as every score is for an empty support.

    Parameters
    ----------
    rank : int, default 32
        Number of factors.
    iterations : int, default 15
        Times that both sides' factors are found.
    confidence : float, default 10
        c, how much a chosen item counts beside one that was not.
    regularization : float, default 1
        λ.

    References
    ----------
    Hu, Koren, Volinsky 2008. Collaborative filtering for implicit feedback datasets, sections 4 and 5.
    """

    name = "ials"
    scenarios = ("warm", "new-user")
    feedback = ("implicit",)

    def __init__(
        self,
        *,
        rank: Annotated[int, Range(1, 1024)] = 32,
        iterations: Annotated[int, Range(1, 1000)] = 15,
        confidence: Annotated[float, Range(1.001, 10_000, log=True)] = 10.0,
        regularization: Annotated[float, Range(1e-6, 1e6, log=True)] = 1.0,
    ) -> None:
        self.rank = rank
        self.iterations = iterations
        self.confidence = confidence
        self.regularization = regularization

    def fit(self, train: Dataset, *, valid: Tasks | None = None, run: Run = Run()) -> Self:
        """Find both sides' factors in turn, the users' last."""
        sides: tuple[Side, ...] = ("item", "user")
        lists = {side: _chosen(train, side, run.device) for side in sides}
        start = torch.randn(
            len(train.users),
            self.rank,
            generator=torch.Generator().manual_seed(run.seed),
            dtype=torch.float64,
        )
        self.factors_ = {"user": (0.1 * start).to(run.device, run.dtype)}
        for _ in run.epochs(self.iterations, f"fit {self.name}"):
            for side in sides:
                self.factors_[side] = self._solved(self.factors_[partner_side(side)], lists[side]).mean
        return self

    def adapt(self, support: Support) -> Folded:
        """The factors of each task's entity, given its partners'."""
        table = self.factors_[partner_side(support.side)]
        solved = self._solved(table, Ragged(support.offsets, support.partners.rows[support.partner]))
        return Folded(solved.mean, solved.cholesky, support.side)

    def predict(self, adapted: Adapted, query: Query) -> Prediction:
        """Scores: near 1 for what is likely to be chosen."""
        folded = _folded(adapted)
        return Prediction((folded.factors[query.owner] * self._factors(folded.side, query)).sum(1))

    def query_factors(self, adapted: Adapted) -> Tensor:
        """float [T, rank]: the entities' factors."""
        return _folded(adapted).factors

    def candidate_factors(self, side: Side, partners: EntityRows) -> Tensor:
        """float [P, rank]: the partners' factors."""
        return _rows(self.factors_[partner_side(side)], partners.rows)

    def absorb(self, adapted: Adapted, rating: Support) -> Folded:
        """One more choice per task, in O(rank²)."""
        return self._updated(_folded(adapted), rating, 1)

    def forget(self, adapted: Adapted, rating: Support) -> Folded:
        """One choice less per task, in O(rank²)."""
        return self._updated(_folded(adapted), rating, -1)

    def explain(self, adapted: Adapted, support: Support, query: Query) -> Explanation:
        """Choice j adds ``y*ᵀ Λ⁻¹ c y_j`` to the score, which is 0 without any."""
        folded = _folded(adapted)
        asked = self._factors(folded.side, query)
        pull = torch.cholesky_solve(asked.unsqueeze(2), folded.cholesky[query.owner]).squeeze(2)
        chosen = _rows(self.factors_[partner_side(folded.side)], support.partners.rows[support.partner])
        offsets, entry = support.entries(query.owner)
        pair = torch.repeat_interleave(torch.arange(len(pull), device=pull.device), offsets.diff())
        return Explanation(
            baseline=pull.new_zeros(len(pull)),
            offsets=offsets,
            contribution=self.confidence * (pull[pair] * chosen[entry]).sum(1),
            kind="additive",
        )

    @classmethod
    def oracles(cls) -> Iterator[Check]:
        """Factors are the weighted ridge regression over the full matrix, whose objective falls with every sweep."""
        options = {"rank": 4, "confidence": 7.0, "regularization": 0.5}
        train, support = small_world(implicit=True).split.train, tasks_of("new-user", implicit=True).support
        learners = [fitted(cls, {**options, "iterations": n}, implicit=True) for n in (1, 2, 4, 8)]
        last, everybody = learners[-1], _matrix(train.user, train.item, (len(train.users), len(train.items)))
        rows = support.partners.rows[support.partner]
        newcomers = _matrix(support.owner, rows, (len(support), len(train.items)))
        for whose, found, chosen in (
            ("a known user", last.factors_["user"], everybody),
            ("a new user", last.adapt(support).factors, newcomers),
        ):
            expected = torch.stack([last._ridge(row) for row in chosen])
            yield Check(f"{whose} is weighted ridge over all items", distance(found, expected), 1e-10)
        losses = [learner._objective(everybody) for learner in learners]
        yield Check("every sweep lowers the objective", max(b - a for a, b in pairwise(losses)), 0.0)

    def _ridge(self, chosen: Tensor) -> Tensor:
        """float [rank]: the minimum of ``Σ c (p − xᵀy)² + λ‖x‖²`` over all items, by least squares on scaled rows."""
        items = self.factors_["item"]
        weight = (1 + (self.confidence - 1) * chosen).sqrt()
        ridge = self.regularization**0.5 * torch.eye(self.rank).to(items)
        left = torch.cat([weight.unsqueeze(1) * items, ridge])
        right = torch.cat([weight * chosen, ridge.new_zeros(self.rank)])
        solution: Tensor = torch.linalg.lstsq(left, right.unsqueeze(1)).solution
        return solution.squeeze(1)

    def _objective(self, chosen: Tensor) -> float:
        users, items = self.factors_["user"], self.factors_["item"]
        square = (1 + (self.confidence - 1) * chosen) * (chosen - users @ items.T).square()
        penalty = self.regularization * (users.square().sum() + items.square().sum())
        return float(square.sum() + penalty)

    def _solved(self, table: Tensor, lists: Ragged) -> GaussianPosterior:
        """Factors and Λ of entities that chose these rows of the other side's `table`.

        A regression with the Gram matrix for the prior's precision: weight c − 1 and target c / (c − 1) give c Σ y.
        """
        features, target, weight = self._observed(table, lists.partner)
        gram = table.mT @ table + table.new_full((self.rank,), self.regularization).diag()
        return gaussian_posterior(features, target, weight, lists.offsets, table.new_zeros(self.rank), gram)

    def _observed(self, table: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features, extra = _rows(table, rows), self.confidence - 1
        return features, features.new_full(rows.shape, 1 + 1 / extra), features.new_full(rows.shape, extra)

    def _updated(self, folded: Folded, rating: Support, sign: int) -> Folded:
        table = self.factors_[partner_side(folded.side)]
        features, target, weight = self._observed(table, rating.partners.rows[rating.partner])
        factors, cholesky = gaussian_update(folded.factors, folded.cholesky, features, target, sign * weight)
        return replace(folded, factors=factors, cholesky=cholesky)

    def _factors(self, side: Side, query: Query) -> Tensor:
        return _rows(self.factors_[partner_side(side)], query.partners.rows[query.partner])


def _rows(table: Tensor, rows: Tensor) -> Tensor:
    """Rows of a table, zeros where there is none (−1)."""
    return table[rows.clamp(min=0)] * (rows >= 0).unsqueeze(1)


def _chosen(train: Dataset, side: Side, device: torch.device) -> Ragged:
    """What each entity of a side chose, as rows of the other."""
    lists = Ragged.grouped(train.rows(side).long(), len(train.entities(side)))
    partner = train.rows(partner_side(side)).long()[lists.partner]
    return Ragged(lists.offsets.to(device), partner.to(device))


def _matrix(row: Tensor, column: Tensor, shape: tuple[int, int]) -> Tensor:
    """float64 [rows, columns]: 1 where something was chosen."""
    chosen = torch.zeros(shape, dtype=torch.float64)
    chosen[row.long(), column.long()] = 1
    return chosen


def _folded(adapted: Adapted) -> Folded:
    assert isinstance(adapted, Folded)
    return adapted


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `IALS`."""
    register(IALS)

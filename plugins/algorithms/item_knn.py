"""Item neighbours: what was said of items like this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Self

import torch
from torch import Tensor

from metarec import Range, hookimpl
from metarec.data import Dataset
from metarec.learning import Adapted, Algorithm, Explanation, Prediction, Run, leave_one_out
from metarec.ops import cosine_topk
from metarec.tasks import Query, Ragged, Support, Tasks
from metarec.testing.oracles.check import Check, distance, fitted, tasks_of
from metarec.testing.world import small_world

# Ratings that 0 is worth in the bias of an item or a user.
PRIOR = 5
# The similarity that the baseline is worth beside the neighbours in the support.
BASELINE = 1.0


@dataclass(frozen=True)
class Said:
    """What the tasks said of items, task by task.

    Parameters
    ----------
    lists : Ragged
        Rows of known items.
    value : float [n]
        How far each rating is from the baseline; 1 where feedback is implicit.
    """

    lists: Ragged
    value: Tensor

    def select(self, tasks: Tensor) -> Said:
        """That of these tasks (int64 [M]), in that order."""
        return Said(self.lists.select(tasks), self.value[self.lists.entries(tasks)[1]])

    def to(self, device: torch.device | str | None = None) -> Said:
        """The same on `device`."""
        lists = Ragged(self.lists.offsets.to(device), self.lists.partner.to(device))
        return Said(lists, self.value.to(device))


@dataclass(frozen=True)
class Ratings(Adapted):
    """A user's support as its neighbours are asked for it.

    Parameters
    ----------
    bias : float [T]
        Of the user; 0 where feedback is implicit.
    said : Said
    """

    bias: Tensor
    said: Said


class ItemKNN(Algorithm):
    """The k items nearest to an item, and what the user said of those.

    Items are alike whose users said alike of them. With e_i the item's column of what users said, less the baseline
    ``b_ui = μ + b_u + b_i`` where ratings are explicit and 1 for a choice where not,

        s_ij = e_iᵀ e_j / √((‖e_i‖² + λ) (‖e_j‖² + λ)),

    a cosine that is shrunk to 0 where an item has few users. N(i) holds the k items of the greatest positive s_ij, and

        explicit: r_ui = b_ui + Σ_j s_ij (r_uj − b_uj) / (1 + Σ_j s_ij),   implicit: score = Σ_j s_ij,   j ∈ N(i) ∩ S.

    The biases are means shrunk to 0, ``b_i = Σ (r − μ) / (n + 5)`` and ``b_u = Σ (r − μ − b_i) / (n + 5)``, the
    latter of the support alone: so a new user needs no refit. The 1 is what the baseline is worth: without it a single
    neighbour, however unlike, would say all. An item without neighbours in the support has the baseline, or score 0.
    The fit holds one dense column per item: users × items numbers.

    Parameters
    ----------
    neighbours : int, default 50
        k.
    shrinkage : float, default 10
        λ.

    References
    ----------
    Deshpande, Karypis 2004, Item-based top-N recommendation algorithms. Koren 2010, Factor in the neighbors, section
    2.2.
    """

    name = "item-knn"
    scenarios = ("warm", "new-user")

    def __init__(
        self,
        *,
        neighbours: Annotated[int, Range(1, 10_000)] = 50,
        shrinkage: Annotated[float, Range(0.0, 10_000)] = 10.0,
    ) -> None:
        self.neighbours = neighbours
        self.shrinkage = shrinkage

    def fit(self, train: Dataset, *, valid: Tasks | None = None, run: Run = Run()) -> Self:
        """Find the items' biases and their neighbours."""
        user, item = train.user.long().to(run.device), train.item.long().to(run.device)
        rating = train.rating.to(run.device, run.dtype)
        users, items = len(train.users), len(train.items)
        self.implicit_ = train.scale.implicit
        self.mean_ = 0.0 if self.implicit_ else float(rating.mean())
        self.bias_ = rating.new_zeros(items)
        if not self.implicit_:
            self.bias_ = _shrunk(rating - self.mean_, item, items, PRIOR)
            rating = rating - self.mean_ - self.bias_[item]
            rating = rating - _shrunk(rating, user, users, PRIOR)[user]
        columns = rating.new_zeros(items, users)
        columns[item, user] = rating
        columns /= (columns.square().sum(1, keepdim=True) + self.shrinkage).sqrt().clamp(min=1e-6)
        itself = torch.arange(items + 1, device=run.device)
        similarity, self.neighbour_ = cosine_topk(
            columns,
            columns,
            min(self.neighbours, items),
            excluded=(itself, itself[:-1]),
            similarity="dot",
        )
        self.similarity_ = similarity.clamp(min=0)
        return self

    def adapt(self, support: Support) -> Ratings:
        """The user's bias, and how far its ratings are from the baseline."""
        rows = support.partners.rows[support.partner]
        value = support.rating
        bias = value.new_zeros(len(support))
        if not self.implicit_:
            value = value - self.mean_ - self._bias(rows)
            bias = support.sum(value) / (support.counts + PRIOR)
            value = value - bias[support.owner]
        return Ratings(bias, Said(Ragged(support.offsets, rows), value))

    def predict(self, adapted: Adapted, query: Query) -> Prediction:
        """The baseline and what was said of the neighbours; with implicit feedback the score."""
        assert isinstance(adapted, Ratings)
        said, rows = adapted.said, query.partners.rows[query.partner]
        value = said.value.new_zeros(len(said.lists), self.bias_.numel())
        heard, known = torch.zeros_like(value), said.lists.partner >= 0
        place = said.lists.owner[known], said.lists.partner[known]
        value[place], heard[place] = said.value[known], 1.0
        owner, row = query.owner.unsqueeze(1), rows.clamp(min=0)
        similarity, neighbour = self.similarity_[row], self.neighbour_[row].clamp(min=0)
        total = (similarity * value[owner, neighbour]).sum(1).masked_fill(rows < 0, 0.0)
        if self.implicit_:
            return Prediction(total)
        weight = (similarity * heard[owner, neighbour]).sum(1)
        near = total / (BASELINE + weight)
        return Prediction(self.mean_ + adapted.bias[query.owner] + self._bias(rows) + near)

    def explain(self, adapted: Adapted, support: Support, query: Query) -> Explanation:
        """The mean less what it is by the rest of the support."""
        return leave_one_out(self, adapted, support, query)

    @classmethod
    def oracles(cls) -> Iterator[Check]:
        """The formula over all pairs of items and of users, by dense matrices."""
        for feedback in cls.feedback:
            implicit = feedback == "implicit"
            train = small_world(implicit=implicit).split.train
            # No item of this world has a tie between its 11th neighbour and the next.
            learner = fitted(cls, {"neighbours": 11, "shrinkage": 3.0}, implicit=implicit)
            mean, of_item, similarity = learner._by_matrices(train)
            for scenario in cls.scenarios:
                tasks = tasks_of(scenario, implicit=implicit)
                support, query = tasks.support, tasks.query
                seen, asked = support.partners.rows[support.partner], query.partners.rows[query.partner]
                rated, heard = _matrices(support.owner, seen, support.rating, (len(tasks), len(of_item)))
                residual = (rated - mean - of_item) * heard
                bias = 0 if implicit else residual.sum(1, keepdim=True) / (heard.sum(1, keepdim=True) + PRIOR)
                away = (residual - bias) * heard
                weight = 0 if implicit else heard @ similarity.T
                expected = mean + bias + of_item + away @ similarity.T / (BASELINE + weight)
                found = learner.predict(learner.adapt(support), query).mean
                error = distance(found, expected[query.owner, asked])
                yield Check(f"mean by dense matrices ({scenario}, {feedback})", error, 1e-10)

    def _by_matrices(self, train: Dataset) -> tuple[float, Tensor, Tensor]:
        """Mean, biases of the items, and similarities, 0 where another item is no neighbour."""
        shape = len(train.items), len(train.users)
        columns, rated = _matrices(train.item, train.user, train.rating, shape)
        mean, of_item = 0.0, columns.new_zeros(len(columns))
        if not self.implicit_:
            mean = float(columns.sum() / rated.sum())
            of_item = ((columns - mean) * rated).sum(1) / (rated.sum(1) + PRIOR)
            columns = (columns - mean - of_item.unsqueeze(1)) * rated
            columns = (columns - columns.sum(0) / (rated.sum(0) + PRIOR)) * rated
        size = columns.square().sum(1) + self.shrinkage
        similarity = columns @ columns.T / (size * size.unsqueeze(1)).sqrt()
        similarity.fill_diagonal_(-1)
        least = similarity.topk(self.neighbours).values[:, -1:]
        return mean, of_item, similarity.where((similarity >= least) & (similarity > 0), 0)

    def _bias(self, rows: Tensor) -> Tensor:
        return self.bias_[rows.clamp(min=0)].masked_fill(rows < 0, 0.0)


def _shrunk(residual: Tensor, row: Tensor, count: int, prior: float) -> Tensor:
    """float [count]: the mean residual of each row, as if `prior` more were 0."""
    total = residual.new_zeros(count).index_add_(0, row, residual)
    return total / (torch.bincount(row, minlength=count) + prior)


def _matrices(row: Tensor, column: Tensor, rating: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """float64 [rows, columns] twice: the ratings, and 1 where there is one."""
    rated, heard = torch.zeros(2, *shape, dtype=torch.float64)
    place = row.long(), column.long()
    rated[place], heard[place] = rating.double(), 1.0
    return rated, heard


@hookimpl
def register_algorithms(register: Callable[[type[Algorithm]], None]) -> None:
    """Register `ItemKNN`."""
    register(ItemKNN)

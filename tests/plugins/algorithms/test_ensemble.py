"""The ensemble's weights against scipy, and against members of which one knows everything or one knows nothing."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from metarec import Prediction, create_algorithm, split
from metarec.errors import ConfigError
from metarec.learning import Run
from metarec.plugins.algorithms.ensemble import SIZES, Ensemble, simplex_weights
from metarec.testing import AlgorithmConformance
from metarec.testing.oracles.check import tasks_of
from metarec.testing.world import small_world

DOUBLE = Run(dtype=torch.float64)
FAST = ("bias", "bayesian", "global-mean")


class TestConformance(AlgorithmConformance):
    algorithm = Ensemble
    options: ClassVar = {"algorithms": ("bias", "global-mean")}


@pytest.fixture(scope="module")
def fitted() -> Ensemble:
    return Ensemble(algorithms=FAST).fit(small_world().split.train, run=DOUBLE)


@pytest.mark.parametrize("seed", range(6))
def test_weights_are_the_least_squares_on_the_simplex(seed: int):
    random = np.random.default_rng(seed)
    errors = random.normal(size=(40, 5)) @ random.normal(size=(5, 5)) + random.normal(size=5)
    products = errors.T @ errors / 40
    found = simplex_weights(torch.from_numpy(products)).numpy()
    expected = minimize(
        lambda w: w @ products @ w,
        np.full(5, 0.2),
        jac=lambda w: 2 * products @ w,
        bounds=[(0, 1)] * 5,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    assert found.sum() == pytest.approx(1, abs=1e-12) and (found >= 0).all()
    assert found @ products @ found <= expected.fun * (1 + 1e-9)
    np.testing.assert_allclose(found, expected.x, atol=1e-5)


def test_all_weight_goes_to_a_member_that_knows():
    errors = torch.tensor([[0.0, 1.0], [0.0, -1.0], [0.0, 2.0]], dtype=torch.float64)
    assert simplex_weights(errors.mT @ errors).tolist() == [1, 0]


def test_equal_members_share_and_opposite_ones_cancel():
    alike = torch.ones(3, 3, dtype=torch.float64)
    assert simplex_weights(alike).tolist() == pytest.approx([1 / 3] * 3)
    opposite = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    assert simplex_weights(opposite).tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("scenario", ["warm", "new-user", "new-item", "new-both"])
def test_each_scenario_has_weights_of_its_own(fitted: Ensemble, scenario: str):
    tasks = tasks_of(scenario)
    adapted = fitted.adapt(tasks.support)
    before = fitted.predict(adapted, tasks.query).mean
    kept = fitted.weights_[scenario]
    fitted.weights_[scenario] = torch.zeros_like(kept).index_fill(1, torch.tensor([2]), 1.0)
    new = tasks.query.partners.rows[tasks.query.partner] < 0
    after = fitted.predict(adapted, tasks.query).mean
    fitted.weights_[scenario] = kept
    mean = small_world().split.train.rating.double().mean()
    here = new == (scenario == "new-both") if tasks.support.side == "user" else ~new
    assert torch.allclose(after[here], mean.expand(int(here.sum())), rtol=1e-6)
    assert not torch.allclose(before, after)


def test_it_is_not_behind_its_best_member_where_the_weights_were_learnt():
    errors = torch.randn(200, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    products = errors.mT @ errors / 200
    weights = simplex_weights(products)
    assert weights @ products @ weights < products.diagonal().min()


def test_a_member_without_a_variance_is_as_far_off_as_it_was():
    train = small_world().split.train
    ensemble = Ensemble(algorithms=("entity-median", "global-mean")).fit(train, run=DOUBLE)
    cut = split(train, "cold-start", seed=0, support_sizes=SIZES, min_support=1, min_query=1)
    member = create_algorithm("entity-median").fit(cut.train, run=DOUBLE)
    cell = next(cell for cell in cut.cells if cell.scenario == "new-user" and cell.support == 4)
    tasks = cell.tasks.support.to("cpu", torch.float64), cell.tasks.query.to("cpu", torch.float64)
    error = member.predict(member.adapt(tasks[0]), tasks[1]).mean - cell.tasks.rating.double()
    ensemble.weights_ = {
        name: torch.eye(2, dtype=torch.float64)[:1].expand_as(weights)
        for name, weights in ensemble.weights_.items()
    }
    silent = ensemble.members_["entity-median"]
    silent.predict = lambda adapted, query: Prediction(member.predict(adapted, query).mean)
    found = ensemble.predict(ensemble.adapt(tasks[0]), tasks[1])
    assert found.variance is not None
    four = (tasks[0].counts == 4)[tasks[1].owner]
    assert four.any()
    torch.testing.assert_close(found.variance[four], error.square().mean().expand(int(four.sum())))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("bias", "bias"), "a name stands twice in bias, bias"),
        (("bias", "bayesain"), "did you mean 'bayesian'?"),
    ],
)
def test_members_that_cannot_be_are_refused(names: tuple[str, ...], said: str):
    with pytest.raises(ConfigError, match=said):
        Ensemble(algorithms=names).fit(small_world().split.train)


def test_it_wants_two_members():
    with pytest.raises(ConfigError, match="algorithms"):
        create_algorithm("ensemble", algorithms=["bias"])

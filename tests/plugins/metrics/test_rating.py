"""Rating errors, held against scikit-learn and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import mean_absolute_error, mean_squared_error, root_mean_squared_error

from metarec.data import RatingScale
from metarec.evaluation import Metric, Scored
from metarec.pluginmanager import create_plugin_manager

SCALE = RatingScale(1.0, 5.0, relevant_from=4.0, step=1.0)
METRICS = create_plugin_manager(installed=False).metrics


def pooled(metric: Metric, scored: Scored) -> float:
    value, weight = metric.score(scored), metric.weight(scored)
    return float(metric.summarise((value * weight).sum() / weight.sum()))


@pytest.mark.parametrize(
    ("name", "oracle"),
    [("mae", mean_absolute_error), ("mse", mean_squared_error), ("rmse", root_mean_squared_error)],
)
def test_pooled_over_pairs_of_the_clipped_mean(name, oracle) -> None:
    generator = torch.Generator().manual_seed(0)
    rating = torch.randint(1, 6, (100,), generator=generator).double()
    mean = 3 + 3 * torch.randn(100, generator=generator, dtype=torch.float64)
    scored = Scored.of_query(SCALE, torch.tensor([0, 1, 30, 100]), rating, mean)
    assert pooled(METRICS.create(name), scored) == pytest.approx(oracle(rating, mean.clamp(1, 5)), rel=1e-12)


def test_the_median_is_rounded_to_the_scale_and_stays_on_it() -> None:
    offsets, rating = torch.tensor([0, 3]), torch.tensor([4.0, 1.0, 5.0])
    mean = torch.tensor([3.6, 1.4, 5.9])
    scored = Scored.of_query(SCALE, offsets, rating, mean)
    assert pooled(METRICS.create("mae_median"), scored) == 0.0
    halves = RatingScale(0.5, 5.0, relevant_from=4.0, step=0.5)
    scored = Scored.of_query(halves, offsets, rating, mean)  # medians 3.5, 1.5, 5
    assert pooled(METRICS.create("mae_median"), scored) == pytest.approx(1.0 / 3)


def test_without_a_step_the_median_is_the_clipped_mean() -> None:
    scale = RatingScale(1.0, 5.0, relevant_from=2.0)
    scored = Scored.of_query(scale, torch.tensor([0, 2]), torch.tensor([4.0, 1.0]), torch.tensor([3.6, 0.5]))
    assert pooled(METRICS.create("mae_median"), scored) == pytest.approx(0.2, abs=1e-7)


def test_a_task_without_query_is_undefined() -> None:
    scored = Scored.of_query(SCALE, torch.tensor([0, 0, 1]), torch.tensor([4.0]), torch.tensor([3.0]))
    value = METRICS.create("mae").score(scored)
    assert math.isnan(value[0])
    assert value[1] == 1.0

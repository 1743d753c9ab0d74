"""Predictive distributions, held against SciPy and numerical integration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from metarec.data import RatingScale
from metarec.errors import ConfigError
from metarec.evaluation import Scored, create_metrics
from metarec.pluginmanager import create_plugin_manager

SCALE = RatingScale(1.0, 5.0, relevant_from=4.0, step=1.0)
METRICS = create_plugin_manager(installed=False).metrics


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray, np.ndarray, Scored]:
    random = np.random.default_rng(0)
    rating, mean, variance = random.uniform(1, 5, 40), random.normal(3, 2, 40), random.uniform(0.01, 4, 40)
    scored = Scored.of_query(
        SCALE, torch.arange(41), torch.tensor(rating), torch.tensor(mean), torch.tensor(variance)
    )
    return rating, mean, np.sqrt(variance), scored


def test_nll_is_minus_the_normal_log_density(case) -> None:
    rating, mean, deviation, scored = case
    np.testing.assert_allclose(
        METRICS.create("nll").score(scored), -norm.logpdf(rating, mean, deviation), rtol=1e-12
    )


def test_crps_equals_its_integral(case) -> None:
    rating, mean, deviation, scored = case
    for r, m, s, value in zip(rating, mean, deviation, METRICS.create("crps").score(scored), strict=True):
        below = quad(lambda x: norm.cdf(x, m, s) ** 2, min(m - 12 * s, r - 1), r, limit=200)[0]  # noqa: B023
        above = quad(lambda x: norm.sf(x, m, s) ** 2, r, max(m + 12 * s, r + 1), limit=200)[0]  # noqa: B023
        assert float(value) == pytest.approx(below + above, abs=1e-6)


@pytest.mark.parametrize("percent", [1, 50, 90, 99])
def test_interval_coverage_counts_what_lies_between_the_quantiles(case, percent: int) -> None:
    rating, mean, deviation, scored = case
    low, high = norm.interval(percent / 100, mean, deviation)
    inside = (rating >= low) & (rating <= high)
    value = METRICS.create("interval_coverage", percent=percent).score(scored)
    np.testing.assert_array_equal(value, inside)


def test_interval_coverage_of_a_right_distribution_is_its_level() -> None:
    error = torch.randn(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scored = Scored.of_query(SCALE, torch.tensor([0, 200_000]), 3 + 2 * error, 3 + 0 * error, 4 + 0 * error)
    assert float(METRICS.create("interval_coverage", percent=90).score(scored)) == pytest.approx(
        0.9, abs=0.003
    )


def test_a_level_off_the_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"metric 'interval_coverage@100': percent is '100', expected .*99"):
        create_metrics(["interval_coverage@100"], METRICS)

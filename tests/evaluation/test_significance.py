"""The bootstrap against textbook standard errors and SciPy; Holm's correction by its definition."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import bootstrap, ttest_1samp

from metarec.evaluation import significance
from metarec.evaluation.significance import holm_levels, interval, normal_interval, p_value, resampled_sums


def values(count: int, columns: int = 1) -> torch.Tensor:
    return torch.rand(count, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_resampled_means_have_the_standard_error_of_the_mean() -> None:
    sample = values(300)
    means = resampled_sums(sample, resamples=20_000, seed=0) / 300
    assert float(means.mean()) == pytest.approx(float(sample.mean()), abs=1e-3)
    assert float(means.std()) == pytest.approx(float(sample.std(correction=0)) / 300**0.5, rel=0.02)


def test_interval_equals_scipys_percentile_bootstrap() -> None:
    sample = values(80).square()
    means = resampled_sums(sample, resamples=40_000, seed=1) / 80
    its = bootstrap((sample[:, 0].numpy(),), np.mean, n_resamples=40_000, method="percentile", rng=0)
    np.testing.assert_allclose(interval(means, 0.95)[:, 0], its.confidence_interval, atol=1.5e-3)


def test_all_columns_share_their_draws_and_each_draws_as_many_as_there_are() -> None:
    sample = values(50)
    sums = resampled_sums(
        torch.cat([sample, 2 * sample, torch.ones_like(sample)], dim=1), resamples=100, seed=0
    )
    torch.testing.assert_close(sums[:, 1], 2 * sums[:, 0])
    assert set(sums[:, 2].tolist()) == {50.0}


def test_blocks_of_resamples_keep_to_their_memory(monkeypatch) -> None:
    monkeypatch.setattr(significance, "_DRAWS_AT_ONCE", 1000)
    sums = resampled_sums(torch.ones(300, 1, dtype=torch.float64), resamples=10, seed=0)
    assert sums.flatten().tolist() == [300.0] * 10


def test_one_seed_one_result() -> None:
    first, again, other = (resampled_sums(values(40), resamples=50, seed=seed) for seed in (3, 3, 4))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("shift", [0.0, 0.03, 0.06])
def test_p_value_is_near_that_of_a_t_test(shift: float) -> None:
    gains = values(400) - 0.5 + shift
    resampled = resampled_sums(gains, resamples=20_000, seed=0)[:, 0] / 400
    expected = ttest_1samp(gains[:, 0].numpy(), 0.0).pvalue
    assert p_value(float(gains.mean()), float(resampled.std())) == pytest.approx(expected, abs=0.02, rel=0.15)


def test_p_value_without_spread() -> None:
    assert p_value(0.0, 0.0) == 1.0
    assert p_value(0.5, 0.0) == 0.0


def closed_test(p_values: list[float]) -> Iterator[float]:
    """Holm's adjustment as the closed test of Bonferroni: the largest over all families that hold a hypothesis."""
    for i in range(len(p_values)):
        others = [p for j, p in enumerate(p_values) if j != i]
        families = [
            [p_values[i], *some] for size in range(len(others) + 1) for some in combinations(others, size)
        ]
        yield max(min(1.0, len(family) * min(family)) for family in families)


@given(st.lists(st.floats(0, 0.1), max_size=6))
def test_levels_find_what_the_closed_bonferroni_test_finds(p_values: list[float]) -> None:
    levels = holm_levels(p_values, 0.95)
    for p, level, adjusted in zip(p_values, levels, closed_test(p_values), strict=True):
        assume(abs(adjusted - 0.05) > 1e-9)
        assert (p < 1 - level) == (adjusted < 0.05)


def test_levels_by_hand() -> None:
    shares = [1 - level for level in holm_levels([0.03, 0.001, 0.04, 0.014], 0.95)]
    assert shares == pytest.approx([0.05 / 2, 0.05 / 4, 0.05 / 2, 0.05 / 3])


@given(st.floats(-4, 4), st.floats(0.5, 0.999))
def test_an_interval_excludes_zero_where_p_is_below_its_share(gain: float, level: float) -> None:
    p = p_value(gain, 1.0)
    assume(abs(p - (1 - level)) > 1e-9)
    low, high = normal_interval(gain, 1.0, level)
    assert (low > 0 or high < 0) == (p < 1 - level)

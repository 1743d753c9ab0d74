"""Names that users type for metrics."""

from __future__ import annotations

import pytest

from metarec.errors import ConfigError
from metarec.evaluation import create_metrics
from metarec.pluginmanager import create_plugin_manager

METRICS = create_plugin_manager(installed=False).metrics


def test_what_follows_the_at_sign_is_an_option_and_part_of_the_label() -> None:
    deep, plain, rmse = create_metrics(["ndcg_linear@7", "ndcg_linear", "rmse", "rmse"], METRICS)
    assert (deep.name, deep.depth, deep.label) == ("ndcg_linear", 7, "ndcg_linear@7")
    assert (plain.label, rmse.label) == ("ndcg_linear@5", "rmse")


def test_default_metrics_are_all_known_ones() -> None:
    labels = [metric.label for metric in create_metrics([], METRICS)]
    assert {label.partition("@")[0] for label in labels} == set(METRICS)
    assert [label for label in labels if label.startswith("interval")] == [
        f"interval_coverage@{percent}" for percent in (50, 80, 90, 95)
    ]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("ndgc_linear@5", "unknown metric 'ndgc_linear': did you mean 'ndcg_linear'?"),
        ("rmse@5", "metric 'rmse@5': takes nothing after its name, expected 'rmse'"),
        ("hit@five", "metric 'hit@five': k is 'five', expected a valid integer"),
        ("hit@", "metric 'hit@': k is '', expected a valid integer"),
        ("hit@0", "metric 'hit@0': k is '0', expected greater than or equal to 1"),
    ],
)
def test_a_wrong_name_gets_one_clear_line(wanted: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        create_metrics([wanted], METRICS)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)

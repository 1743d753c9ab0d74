"""What a report says in words, on reports of a few made-up rows."""

from __future__ import annotations

import pytest

from metarec.evaluation import (
    answer,
    best_floors,
    deciding,
    format_value,
    mean_values,
    ranked,
    tallies,
    verdicts,
)


@pytest.fixture
def rows(make_row):
    """`new` beats the floor by RMSE at two of three sizes, is worse by CRPS at one, and `other` is never told apart."""
    made = []
    for size, won in ((0, False), (3, True), (None, True)):
        made.append(make_row(algorithm="floor-a", support=size, value=1.0))
        made.append(make_row(algorithm="floor-b", support=size, value=1.2 if size else 0.9))
        low, high = (0.1, 0.3) if won else (-0.1, 0.3)
        made.append(
            make_row(algorithm="new", support=size, value=0.8, gain=0.2, gain_low=low, gain_high=high)
        )
        made.append(make_row(algorithm="other", support=size, value=1.5))
    made.append(make_row(algorithm="floor-a", metric="crps", value=0.5))
    made.append(make_row(algorithm="new", metric="crps", value=0.7, gain=-0.2, gain_low=-0.3, gain_high=-0.1))
    made.append(make_row(algorithm="new", metric="mae", value=0.1, gain=0.2, gain_low=0.1, gain_high=0.3))
    return made


def test_the_answer_comes_first_and_counts_the_cells_of_what_decides(rows) -> None:
    assert answer(rows) == [
        "On made-up (cold-start), new beats the best floor in 2 of 4 cells, is not told apart from it in 1 and is "
        "worse in 1.",
        "other beats the best floor in 0 of 3 cells, is not told apart from it in 3.",
        "A cell is a scenario at one support size, by one of rmse, crps.",
    ]


def test_an_algorithm_that_always_wins_has_nothing_to_confess(make_row) -> None:
    row = make_row(metric="ndcg_linear@5", list="catalogue", gain=0.2, gain_low=0.1, gain_high=0.3)
    assert answer([make_row(algorithm="floor"), row]) == [
        "On made-up (cold-start), new beats the best floor in 1 of 1 cells.",
        "A cell is a scenario at one support size, by one of ndcg_linear@5 of the catalogue.",
    ]


def test_the_answer_says_when_there_is_nothing_to_compare(make_row) -> None:
    assert answer([]) == ["Nothing was evaluated."]
    assert "only floors were run" in answer([make_row(algorithm="floor")])[0]
    alone = make_row(best_floor=None, gain=None, gain_low=None, gain_high=None)
    assert "no floor was run beside new" in answer([alone])[0]


def test_tallies_count_intervals_that_exclude_zero(make_row) -> None:
    bounds = [(0.1, 0.2), (0.0, 0.2), (-0.1, 0.1), (-0.2, -0.1), (None, None)]
    made = [make_row(support=size, gain_low=low, gain_high=high) for size, (low, high) in enumerate(bounds)]
    (tally,) = tallies([*made, make_row(algorithm="floor"), make_row(metric="novelty@5", gain=None)])
    assert (tally.better, tally.level, tally.worse, tally.cells) == (1, 3, 1, 5)


def test_what_decides_is_ranked_in_the_catalogue_where_there_is_one(make_row) -> None:
    def labels(*pairs: tuple[str, str]) -> list[tuple[str, str]]:
        counted = tallies(make_row(metric=metric, list=name) for metric, name in pairs)
        return [(tally.metric, tally.list) for tally in deciding(counted)]

    query, catalogue = ("ndcg_linear@5", "query"), ("ndcg_linear@5", "catalogue")
    assert labels(query, catalogue, ("nll", "query"), ("rmse", "query"), ("mae", "query")) == [
        ("rmse", "query"),
        ("nll", "query"),
        catalogue,
    ]
    assert labels(query, ("hit@5", "catalogue")) == [query]
    assert labels(("hit@5", "catalogue")) == [("hit@5", "catalogue")]


def test_a_verdict_names_the_best_and_how_far_it_leads(rows) -> None:
    rmse, crps = verdicts(rows)
    assert rmse.sentence == "new (rmse 0.800): 20.0 % better than floor-a, significantly at 2 of 3 sizes"
    assert (rmse.headline.question, rmse.floor_value) == ("predicting ratings", 1.0)
    assert crps.sentence == "floor-a (crps 0.500): a floor, nothing learned does better"


def test_verdicts_follow_the_order_of_scenarios(make_row) -> None:
    made = [make_row(scenario=name) for name in ("strange", "new-both", "warm", "new-user")]
    assert [verdict.scenario for verdict in verdicts(made)] == ["warm", "new-user", "new-both", "strange"]


def test_values_are_averaged_over_seeds_and_sizes_best_first(make_row) -> None:
    made = [
        make_row(seed=seed, support=size, value=seed + (size or 9)) for seed in (0, 1) for size in (1, None)
    ]
    made += [make_row(algorithm="low", support=size, value=0.5) for size in (1, None)]
    made += [make_row(algorithm="partial", support=1, value=0.0)]
    (verdict,) = verdicts(made)
    assert (verdict.best, verdict.value) == ("low", 0.5)
    assert mean_values([row for row in made if row["seed"] == 0]) == {"low": 0.5, "new": 5.0}
    assert ranked([row for row in made if row["seed"] == 0]) == ["low", "new", "partial"]


def test_the_best_is_the_highest_where_higher_is_better(make_row) -> None:
    made = [
        make_row(algorithm=f"new-{value}", value=value, higher_is_better=True) for value in (2.0, 3.0, 1.0)
    ]
    assert list(mean_values(made)) == ["new-3.0", "new-2.0", "new-1.0"]
    assert verdicts(made)[0].best == "new-3.0"


def test_the_best_floor_follows_the_direction_of_the_metric(make_row) -> None:
    made = [make_row(algorithm=f"floor-{value}", value=value) for value in (2.0, 1.0, 3.0)]
    assert best_floors(made)[3]["algorithm"] == "floor-1.0"
    assert best_floors([{**row, "higher_is_better": True} for row in made])[3]["algorithm"] == "floor-3.0"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (0.12345, "0.123"), (-12.5, "-12.500"), (123.456, "123.5"), (0.00012, "0.00012")],
)
def test_figures_keep_what_can_be_read(value: float, text: str) -> None:
    assert format_value(value) == text

"""The evaluator, held against lists made and scored one by one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score

from metarec.data import RatingScale
from metarec.errors import ConfigError, PluginError
from metarec.evaluation import create_metrics, evaluate, evaluator
from metarec.evaluation.evaluator import CellScores
from metarec.pluginmanager import create_plugin_manager
from metarec.tasks import Cell, Split

METRICS = create_plugin_manager(installed=False).metrics


def random_means(split: Split, cell: Cell, *, levels: int = 6) -> torch.Tensor:
    """float [T, P]: scores on so few levels that many are tied."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(cell.tasks), len(cell.tasks.query.partners))
    return torch.randint(0, levels, shape, generator=generator).float()


def one_cell(split: Split, scenario: str, support: int | None) -> tuple[Split, Cell]:
    cell = next(c for c in split.cells if (c.scenario, c.support) == (scenario, support))
    return Split(split.train, split.encoders, [cell]), cell


def ragged(values, offsets) -> list[list]:
    return [values[a:b].tolist() for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]


def scored(table, split: Split, cell: Cell, names: list[str]) -> CellScores:
    algorithm = table(mean=random_means(split, cell))
    (scores,) = evaluate(algorithm, split, create_metrics(names, METRICS)).cells
    return scores


CELLS = [("new-user", 3), ("new-item", 0), ("new-both", None), ("warm", None)]


@pytest.mark.parametrize(("scenario", "support"), CELLS)
def test_catalogue_ndcg_equals_full_lists_one_by_one(table, split, scenario, support, monkeypatch) -> None:
    monkeypatch.setattr(evaluator, "_PAIRS_AT_ONCE", 100)  # several blocks
    split, cell = one_cell(split, scenario, support)
    means, tasks = random_means(split, cell), cell.tasks
    value = scored(table, split, cell, ["ndcg_linear@5"]).scores["catalogue", "ndcg_linear@5"].value
    queries, ratings = (
        ragged(tasks.query.partner, tasks.query.offsets),
        ragged(tasks.rating, tasks.query.offsets),
    )
    hidden = ragged(tasks.excluded.partner, tasks.excluded.offsets)
    for t in range(len(tasks)):
        rating_of = dict(zip(queries[t], ratings[t], strict=True))
        listed = [c for c in tasks.candidates.tolist() if c not in hidden[t]]
        if max(ratings[t]) < split.train.scale.relevant_from:
            assert math.isnan(value[t])
        else:
            gains = [rating_of.get(c, 0.0) for c in listed]
            assert float(value[t]) == pytest.approx(ndcg_score([gains], [means[t, listed].tolist()], k=5))


@pytest.mark.parametrize(("scenario", "support"), CELLS)
def test_beyond_accuracy_equals_lists_one_by_one(table, split, scenario, support, monkeypatch) -> None:
    monkeypatch.setattr(evaluator, "_PAIRS_AT_ONCE", 100)
    split, cell = one_cell(split, scenario, support)
    means, tasks = random_means(split, cell), cell.tasks
    scores = scored(table, split, cell, ["coverage@4", "novelty@4", "unseen@4", "diversity@4"]).scores
    hidden = ragged(tasks.excluded.partner, tasks.excluded.offsets)
    side = tasks.support.side
    partner_side = "item" if side == "user" else "user"
    counts = np.bincount(split.train.rows(partner_side), minlength=len(split.train.entities(partner_side)))
    population = len(split.train.entities(side))
    features = tasks.query.partners.features.dense().double()
    rows = tasks.query.partners.rows.tolist()
    named = set()
    for t in range(len(tasks)):
        ranked = sorted(tasks.candidates.tolist(), key=lambda c: (-float(means[t, c]), c))
        top = [c for c in ranked if c not in hidden[t]][:4]
        named.update(top)
        popularity = [counts[rows[c]] if rows[c] >= 0 else 0 for c in top]
        novelty = [-math.log2((count + 1) / (population + 2)) for count in popularity]
        distances = [
            1 - float(torch.nn.functional.cosine_similarity(features[a], features[b], dim=0))
            for i, a in enumerate(top)
            for b in top[:i]
        ]
        assert float(scores["catalogue", "novelty@4"].value[t]) == pytest.approx(np.mean(novelty))
        assert float(scores["catalogue", "unseen@4"].value[t]) == np.mean(
            [c not in hidden[t] for c in ranked[:4]]
        )
        assert float(scores["catalogue", "diversity@4"].value[t]) == pytest.approx(
            np.mean(distances), abs=1e-6
        )
    assert float(scores["catalogue", "coverage@4"].value) == len(named) / tasks.candidates.numel()


def test_blocks_change_nothing(table, split, monkeypatch) -> None:
    split, cell = one_cell(split, "new-user", 3)
    whole = scored(table, split, cell, [])
    monkeypatch.setattr(evaluator, "_PAIRS_AT_ONCE", 7)
    blocks = scored(table, split, cell, [])
    assert whole.scores.keys() == blocks.scores.keys()
    for key, score in whole.scores.items():
        torch.testing.assert_close(score.value, blocks.scores[key].value, equal_nan=True, rtol=0, atol=0)


class FactorTable:
    """What makes a table `Factorized`: its rows, and unit vectors for the partners."""

    def query_factors(self, adapted):
        return self.mean[adapted.row]

    def candidate_factors(self, side, partners):
        return torch.eye(self.mean.shape[1])[self.candidates]


def test_factors_give_the_same_lists_as_predictions(table, split) -> None:
    split, cell = one_cell(split, "new-user", 3)
    plain = table(mean=random_means(split, cell))
    factorized = type("Factors", (FactorTable, table), {})(mean=plain.mean)
    factorized.candidates = cell.tasks.candidates
    metrics = create_metrics(["map@5", "unseen@5", "coverage@5"], METRICS)
    (expected,), (found,) = (evaluate(its, split, metrics).cells for its in (plain, factorized))
    for key, score in expected.scores.items():
        torch.testing.assert_close(found.scores[key].value, score.value, equal_nan=True)


def test_metrics_of_variance_are_left_out_where_there_is_none(table, split) -> None:
    split, cell = one_cell(split, "new-user", 3)
    means = random_means(split, cell)
    metrics = create_metrics(["nll", "rmse"], METRICS)
    (without,) = evaluate(table(mean=means), split, metrics).cells
    (having,) = evaluate(table(mean=means, variance=means + 1), split, metrics).cells
    assert set(without.scores) == {("query", "rmse")}
    assert set(having.scores) == {("query", "rmse"), ("query", "nll")}


def test_implicit_feedback_is_only_ranked_in_the_catalogue(table, split) -> None:
    split, cell = one_cell(split, "new-user", 3)
    train = replace(split.train, scale=RatingScale.for_implicit())
    split = Split(train, split.encoders, split.cells)
    (cell_scores,) = evaluate(table(mean=random_means(split, cell)), split, create_metrics([], METRICS)).cells
    assert {name for name, _ in cell_scores.scores} == {"catalogue"}
    assert ("catalogue", "ndcg_linear@5") in cell_scores.scores


def test_scenarios_that_an_algorithm_cannot_answer_are_left_out(table, split) -> None:
    algorithm = table(mean=torch.zeros(100, 100))
    algorithm.scenarios = ("new-user",)
    evaluation = evaluate(algorithm, split, create_metrics(["rmse"], METRICS))
    assert [(cell.scenario, cell.support) for cell in evaluation.cells] == [
        ("new-user", 0),
        ("new-user", 3),
        ("new-user", None),
    ]


@pytest.mark.parametrize(
    ("mean", "variance", "what"),
    [
        (math.nan, 1.0, "means"),
        (math.inf, 1.0, "means"),
        (3.0, 0.0, "variances"),
        (3.0, math.nan, "variances"),
    ],
)
def test_what_is_no_prediction_is_named(table, split, mean: float, variance: float, what: str) -> None:
    split, cell = one_cell(split, "new-user", 3)
    shape = random_means(split, cell).shape
    algorithm = table(mean=torch.full(shape, mean), variance=torch.full(shape, variance))
    with pytest.raises(PluginError, match=f"algorithm 'table': predicted .*{what} .*'new-user' at .* 3,"):
        evaluate(algorithm, split, create_metrics(["nll"], METRICS))


def test_k_beyond_the_catalogue_is_refused(table, split) -> None:
    split, cell = one_cell(split, "new-user", 3)
    count = cell.tasks.candidates.numel()
    with pytest.raises(ConfigError, match=f"metric 'hit@{count + 1}': looks at .* has {count} candidates"):
        scored(table, split, cell, [f"hit@{count + 1}"])
    scored(table, split, cell, [f"hit@{count}"])

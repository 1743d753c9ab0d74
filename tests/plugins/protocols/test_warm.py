"""Cross-validation with known users and items: every rating once, and nothing of a query in training."""

import pytest
import torch

from metarec.errors import DataError
from metarec.plugins.protocols.warm import Warm


@pytest.fixture(scope="module")
def dataset(make_dataset):
    return make_dataset(users=30, items=25, density=0.3)


@pytest.fixture(scope="module")
def made(dataset, unfold):
    return [unfold(dataset, Warm(folds=4).split(dataset, seed=seed)) for seed in range(4)]


def queries(fold):
    return [triple for part in fold.cells("warm")[0].query.values() for triple in part]


def test_k_seeds_predict_every_rating_once(dataset, made):
    everything = sorted(made[0].everything)
    left_out = [
        triple
        for fold in made
        for triple in fold.everything
        if triple not in fold.train and not (triple[0] in fold.known_users and triple[1] in fold.known_items)
    ]
    assert sorted([triple for fold in made for triple in queries(fold)] + left_out) == everything
    assert len(left_out) < len(everything) / 20
    sizes = [len(fold.everything) - len(fold.train) for fold in made]
    assert max(sizes) - min(sizes) <= 1


def test_a_support_is_the_training_history_of_a_known_user(made):
    for fold in made:
        (cell,) = fold.cells("warm")
        for user, part in cell.support.items():
            assert sorted(part) == sorted(triple for triple in fold.train if triple[0] == user)
        tasks = fold.split.cells[0].tasks
        assert bool((tasks.support.entities.rows >= 0).all())
        assert cell.candidates == fold.known_items and cell.side == "user"
        assert not set(queries(fold)) & set(fold.train)


def test_the_next_seeds_divide_anew(dataset, made, unfold):
    again, other = (unfold(dataset, Warm(folds=4).split(dataset, seed=seed)) for seed in (1, 5))
    assert queries(again) == queries(made[1]) and again.train == made[1].train
    assert sorted(queries(other)) != sorted(queries(made[1]))


def test_implicit_feedback_is_ranked_in_the_catalogue_only(make_dataset, made):
    assert made[0].split.cells[0].lists == ("query", "catalogue")
    implicit = Warm().split(make_dataset(implicit=True), seed=0)
    assert implicit.cells[0].lists == ("catalogue",)


def test_a_query_without_known_users_and_items_is_refused(dataset):
    with pytest.raises(
        DataError, match=r"^protocol 'warm': no rating of data set 'generated' that is held out has"
    ):
        Warm(folds=2).split(dataset.take(torch.tensor([0, 1])), seed=0)

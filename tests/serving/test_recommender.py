"""What newcomers get is what the algorithm says, by name or by id, by rating or by attribute."""

import runpy
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch

from metarec import Recommender, create_algorithm, split
from metarec.errors import DataError
from metarec.serving import Catalogue
from metarec.tasks import Query
from metarec.testing import small_world
from metarec.testing.pretend_device import pretend_device

EXAMPLES = Path(__file__).parents[2] / "examples"
RunningMean = runpy.run_path(str(EXAMPLES / "every_ability.py"))["RunningMean"]


def recommender(algorithm, *, implicit=False):
    world = small_world(implicit=implicit)
    return Recommender.from_split(algorithm.fit(world.split.train), world.split)


@pytest.fixture(scope="module")
def running():
    """One with every ability; all its scores tie."""
    return recommender(RunningMean())


@pytest.fixture(scope="module", params=["bias", "bayesian"])
def served(request):
    return recommender(create_algorithm(request.param))


def by_hand(newcomer):
    """Rows of all partners not rated, by what the algorithm ranks by, ties by row; and the means of all."""
    serving, known, algorithm = newcomer.recommender, newcomer.partners, newcomer.recommender.algorithm
    partners = serving.partners(newcomer.side)
    query = Query.full(1, partners, torch.arange(len(known)))
    mean = algorithm.predict(newcomer.adapted, query).mean.tolist()
    rank_by = mean
    if algorithm.ranks_by == "choice":
        factors = algorithm.candidate_factors(newcomer.side, partners)
        rank_by = (factors @ algorithm.query_factors(newcomer.adapted)[0]).tolist()
    rows = [row for row in range(len(known)) if row not in newcomer.rated]
    return sorted(rows, key=lambda row: (-rank_by[row], row)), mean


class TestRecommend:
    @pytest.mark.parametrize("side", ["user", "item"])
    @pytest.mark.parametrize("rated", [{}, {2: 5.0}, {2: 5.0, 9: 1.0, 4: 3.0}])
    def test_is_in_the_order_that_the_algorithm_ranks_by(self, served, side, rated):
        partners = served.items if side == "user" else served.users
        newcomer = served.adapt({partners.ids[row]: rating for row, rating in rated.items()}, side=side)
        rows, mean = by_hand(newcomer)
        everything = newcomer.recommend(len(rows))
        assert [one.id for one in everything] == [partners.ids[row] for row in rows]
        assert [one.score for one in everything] == pytest.approx([min(max(mean[row], 1), 5) for row in rows])
        assert newcomer.recommend(4) == everything[:4]

    def test_ties_go_to_the_lower_row(self, running):
        newcomer = running.adapt({running.items.ids[1]: 4})
        expected = [running.items.ids[row] for row in range(len(running.items)) if row != 1]
        assert [one.id for one in newcomer.recommend(len(expected))] == expected

    def test_the_deviation_is_that_of_an_observation_and_a_part_of_it_is_unknown(self, running):
        noise = float(running.algorithm.noise_)
        for count in range(4):
            newcomer = running.adapt({running.items.ids[row]: 3 for row in range(count)})
            (one,) = newcomer.recommend(1)
            assert one.deviation == pytest.approx((noise + noise / (5 + count)) ** 0.5)
            assert one.unknown == pytest.approx((noise / (5 + count)) ** 0.5, rel=1e-4)

    def test_reasons_add_up_strongest_first(self, running):
        ids, names = running.items.ids, running.items.names
        (one,) = running.adapt({ids[0]: 3, ids[1]: 5, ids[2]: 1}).recommend(1)
        mean = float(running.algorithm.mean_)
        shares = {names[0]: (3 - mean) / 8, names[1]: (5 - mean) / 8, names[2]: (1 - mean) / 8}
        found = {reason.title: reason.contribution for reason in one.because}
        assert found == pytest.approx(shares, abs=1e-5)
        assert list(found) == sorted(shares, key=lambda title: -abs(shares[title]))
        assert one.score == pytest.approx(mean + sum(shares.values()), abs=1e-5)

    def test_an_algorithm_that_cannot_explain_gives_no_reasons(self):
        serving = recommender(create_algorithm("bias"))
        assert {one.because for one in serving.adapt({serving.items.ids[0]: 4}).recommend(3)} == {()}

    @pytest.mark.parametrize("k", [0, -1, 32])
    def test_k_beyond_the_catalogue(self, running, k):
        newcomer = running.adapt({running.items.ids[0]: 4})
        with pytest.raises(DataError, match=f"k is {k}, expected 1 to 31: 32 items known, 1 of them rated"):
            newcomer.recommend(k)


class TestRatings:
    @pytest.mark.parametrize("name", ["running-mean", "bias", "bayesian"])
    def test_one_at_a_time_is_all_at_once(self, name):
        serving = recommender(RunningMean() if name == "running-mean" else create_algorithm(name))
        ids = serving.items.ids
        together = serving.adapt({ids[0]: 5, ids[3]: 2, ids[8]: 4}, {"age": 40})
        one_by_one = serving.adapt({ids[8]: 1, ids[5]: 3}, {"age": 40})
        one_by_one = one_by_one.rate(ids[0], 5).forget(ids[5]).rate(serving.items.names[3], 2).rate(ids[8], 4)
        assert one_by_one.rated == together.rated
        expected = {one.id: one for one in together.recommend(29)}
        for one in one_by_one.recommend(29):
            assert one.score == pytest.approx(expected[one.id].score, abs=1e-4)
            assert one.deviation == pytest.approx(expected[one.id].deviation, abs=1e-4)

    def test_a_newcomer_does_not_change(self, running):
        newcomer = running.adapt({running.items.ids[0]: 4})
        before = newcomer.recommend(3)
        newcomer.rate(running.items.ids[1], 1).forget(running.items.ids[0])
        assert newcomer.recommend(3) == before and list(newcomer.rated) == [0]

    def test_what_was_not_rated_cannot_be_forgotten(self, running):
        with pytest.raises(DataError, match="has no rating to forget"):
            running.adapt().forget(running.items.ids[0])

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (0.5, "is 0.5, expected 1 to 5"),
            (5.5, "is 5.5, expected 1 to 5"),
            (float("nan"), "is nan, expected 1 to 5"),
            (float("-inf"), "is -inf, expected 1 to 5"),
            ("4", "is '4', expected a number"),
            (True, "is True, expected a number"),
            (None, "is None, expected a number"),
        ],
    )
    def test_off_the_scale_or_no_number(self, running, value, expected):
        name = running.items.ids[0]
        for attempt in (lambda: running.adapt({name: value}), lambda: running.adapt().rate(name, value)):
            with pytest.raises(DataError, match=f"rating of '{name}' {expected}"):
                attempt()

    def test_implicit_feedback_is_1_or_nothing(self):
        serving = recommender(create_algorithm("popularity"), implicit=True)
        name = serving.items.ids[0]
        assert len(serving.adapt({name: 1}).recommend(3)) == 3
        with pytest.raises(DataError, match=f"rating of '{name}' is 3, expected 1: the feedback is implicit"):
            serving.adapt({name: 3})

    def test_twice_under_two_names(self, running):
        name, title = running.items.ids[0], running.items.names[0]
        with pytest.raises(DataError, match=f"item '{title}' is rated twice, by its id and by its name"):
            running.adapt({name: 3, title: 4})


class TestAttributes:
    def test_text_is_converted_to_the_type_of_the_attribute(self, served):
        numbers, text = ({"age": age, "group": "g1"} for age in (40, "40"))
        assert served.adapt({}, text).recommend(5) == served.adapt({}, numbers).recommend(5)

    def test_none_is_missing(self, served):
        assert served.adapt({}, {"age": None}).recommend(5) == served.adapt().recommend(5)

    def test_one_value_is_a_list_of_one(self, make_dataset):
        known = split(make_dataset())
        serving = Recommender.from_split(create_algorithm("bias").fit(known.train), known)
        one, listed, two = (
            serving.adapt({}, {"kinds": kinds}, side="item").entity.features.dense()
            for kinds in ("drama", ["drama"], ["drama", "comedy"])
        )
        assert torch.equal(one, listed) and not torch.equal(one, two)

    @pytest.mark.parametrize(
        ("attributes", "expected"),
        [
            ({"gruop": "g1"}, "unknown user attribute 'gruop': did you mean 'group'?"),
            ({"age": "old"}, "attribute 'age': found 'old', expected a finite number"),
            ({"age": "nan"}, "attribute 'age': found 'nan', expected a finite number"),
            ({"age": [30]}, "attribute 'age': found List"),
            ({"group": 1.5}, "attribute 'group': found Float64"),
        ],
    )
    def test_unknown_or_of_the_wrong_type(self, served, attributes, expected):
        with pytest.raises(DataError) as raised:
            served.adapt({}, attributes)
        assert str(raised.value).startswith(expected) and "\n" not in str(raised.value)

    def test_unseen_values_are_pointed_out(self, running):
        assert running.unseen({"group": "g1", "age": 200}) == []
        (line,) = running.unseen({"group": "g11"})
        assert line == "user attribute 'group': unknown value 'g11': did you mean 'g1'?"
        assert running.unseen({"kind": None}, side="item") == []


class TestNames:
    @pytest.fixture
    def films(self):
        known = small_world().split.train
        names = ["Heat (1995)", "The Matrix (1999)", "Matrix, The (2003)", "Solaris", "Solaris", "7"]
        return replace(
            Catalogue.of(known.restrict(torch.arange(7), torch.arange(7)), "item"),
            ids=pl.Series("id", [1, 2, 3, 4, 5, 6, 7]),
            names=pl.Series("name", [*names, "Die große Stille"]),
            popularity=torch.tensor([1, 5, 9, 2, 2, 1, 1]),
        )

    @pytest.mark.parametrize(
        ("called", "row"), [(3, 2), ("3", 2), ("Heat (1995)", 0), (7, 6), ("7", 6), (6, 5)]
    )
    def test_ids_come_before_names(self, films, called, row):
        assert films.row(called) == row

    def test_a_name_of_several_is_answered_with_their_ids(self, films):
        with pytest.raises(DataError, match=r"^item 'Solaris' is the name of 2: give one of the ids 4, 5$"):
            films.row("Solaris")

    @pytest.mark.parametrize(
        ("called", "meant"),
        [
            ("heat", "did you mean 'Heat (1995)' (1)?"),
            ("matrix", "did you mean 'Matrix, The (2003)' (3) or 'The Matrix (1999)' (2)?"),
            ("the matrx 1999", "did you mean 'The Matrix (1999)' (2)?"),
            ("Solarsi", "did you mean 'Solaris' (4) or 'Solaris' (5)?"),
            ("DIE GROSSE", "did you mean 'Die große Stille' (7)?"),
            ("zebra", "none of the 7 items known has a name or an id like it"),
            ("", "none of the 7 items known has a name or an id like it"),
            ("…", "none of the 7 items known has a name or an id like it"),
        ],
    )
    def test_an_unknown_name_is_answered_with_the_likeliest(self, films, called, meant):
        with pytest.raises(DataError) as raised:
            films.row(called)
        assert str(raised.value) == f"unknown item {called!r}: {meant}"


def test_works_the_same_on_another_device(served):
    """And leaves the one that it was made of where it is."""
    rated = {served.items.ids[2]: 5.0, served.items.ids[9]: 1.0}

    def recommended(recommender):
        newcomer = recommender.adapt(rated, {"age": 30}).rate(served.items.ids[4], 3.0)
        return newcomer.recommend(4), newcomer.forget(served.items.ids[2]).recommend(4)

    with pretend_device() as device:
        there = recommended(served.to(device))
    assert there == recommended(served)

"""Places in lists, held against sorting by hand."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metarec.evaluation import log_binomial
from metarec.evaluation.ranking import Places, catalogue_places, ragged_places, seen_places

few_scores = st.integers(-2, 2).map(float)


def offsets_of(lists: list[list[float]]) -> torch.Tensor:
    return torch.tensor(
        [0, *torch.tensor([len(part) for part in lists]).cumsum(0).tolist()], dtype=torch.int64
    )


@given(st.lists(st.lists(few_scores, max_size=6), max_size=5))
def test_ragged_places_count_those_above_and_level(lists: list[list[float]]) -> None:
    start, size = ragged_places(offsets_of(lists), torch.tensor([x for part in lists for x in part]))
    assert start.tolist() == [sum(y > x for y in part) for part in lists for x in part]
    assert size.tolist() == [part.count(x) for part in lists for x in part]


@st.composite
def catalogues(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    """Scores of a few lists over a small catalogue with ties and left-out candidates, and a depth."""
    count = draw(st.integers(1, 7))
    rows = draw(
        st.lists(
            st.lists(few_scores | st.just(-math.inf), min_size=count, max_size=count), min_size=1, max_size=4
        )
    )
    return torch.tensor(rows), draw(st.integers(1, count))


@given(catalogues())
@settings(max_examples=300)
def test_catalogue_places_equal_a_full_sort(case: tuple[torch.Tensor, int]) -> None:
    score, depth = case
    tasks, count = score.shape
    owner = torch.arange(tasks).repeat_interleave(count)
    column = torch.arange(count).repeat(tasks)
    places = catalogue_places(score.clone(), owner, column, depth)
    for t in range(tasks):
        listed = [c for c in range(count) if score[t, c] > -math.inf]
        ranked = sorted(listed, key=lambda c: (-float(score[t, c]), c))[:depth]
        assert places.top[t].tolist() == ranked + [-1] * (depth - len(ranked))
        for c in range(count):
            above = sum(float(score[t, d]) > float(score[t, c]) for d in listed)
            level = sum(float(score[t, d]) == float(score[t, c]) for d in listed)
            pair = t * count + c
            if c in listed and above < depth:
                assert (int(places.start[pair]), int(places.size[pair])) == (above, level)
            else:
                assert int(places.start[pair]) >= depth


def test_what_is_no_candidate_has_no_place() -> None:
    places = catalogue_places(torch.tensor([[3.0, 1.0]]), torch.tensor([0]), torch.tensor([-1]), 2)
    assert places.start.tolist() == [2]


@given(catalogues(), st.data())
@settings(max_examples=300)
def test_seen_places_equal_a_sort_with_all_put_back(
    case: tuple[torch.Tensor, int], data: st.DataObject
) -> None:
    score, depth = case
    score = score.nan_to_num(neginf=-3.0)
    tasks, count = score.shape
    left_out = [sorted(data.draw(st.sets(st.integers(0, count - 1)))) for _ in range(tasks)]
    masked = score.clone()
    for t, columns in enumerate(left_out):
        masked[t, columns] = -math.inf
    none = torch.zeros(0, dtype=torch.int64)
    places: Places = catalogue_places(masked, none, none, depth)
    column = torch.tensor([c for columns in left_out for c in columns], dtype=torch.int64)
    owner = torch.tensor([t for t, columns in enumerate(left_out) for _ in columns], dtype=torch.int64)
    seen = seen_places(places, offsets_of(left_out), column, score[owner, column])
    for t in range(tasks):
        ranked = sorted(range(count), key=lambda c: (-float(score[t, c]), c))[:depth]
        assert seen[t].tolist() == [c in left_out[t] for c in ranked]


def test_log_binomial() -> None:
    for n in range(8):
        for r in range(-1, 10):
            ways = math.comb(n, r) if r >= 0 else 0
            value = log_binomial(torch.tensor(float(n)).double(), torch.tensor(float(r)).double())
            torch.testing.assert_close(value.exp().item(), float(ways), rtol=1e-12, atol=0)

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metarec.ops import PreparedItems, cosine_topk, prepare_items, reference
from metarec.ops.library import NATIVE
from metarec.testing.ops.cosine_topk import brute_force, normal, ragged, samples


@pytest.mark.parametrize("sample", list(samples()), ids=str)
def test_equals_brute_force(sample):
    results = sample.call(*sample.arguments())
    sample.check(results)
    assert (
        results["scores"].dtype == reference.arithmetic_type(sample.dtype)
        and results["rows"].dtype == torch.int64
    )


@pytest.mark.parametrize("batch", [1, 5, 40])
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_exact_on_integers_with_many_ties(batch, similarity, prepared):
    rng = np.random.default_rng(batch)
    queries = torch.from_numpy(rng.integers(-2, 3, (batch, 6))).float()
    items = torch.from_numpy(rng.integers(-2, 3, (9000, 6))).float()
    table = prepare_items(items, similarity=similarity) if prepared else items
    scores, rows = cosine_topk(queries, table, 60, similarity=similarity)
    expected_scores, expected_rows = brute_force(queries.double(), items.double(), 60, None, similarity)
    if similarity == "dot":
        assert torch.equal(rows, expected_rows)
        assert torch.equal(scores.double(), expected_scores)
    cosine = similarity == "cosine"
    plain = reference.cosine_topk_prepare(items, cosine, False)
    wanted = reference.cosine_topk(queries, items, *plain, 60, None, None, cosine)
    assert torch.equal(scores, wanted[0])
    assert torch.equal(rows, wanted[1])


@pytest.mark.skipif(not NATIVE, reason="no native kernels in this build")
@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize(("count", "dim"), [(0, 4), (1, 1), (33, 0), (50, 7), (1000, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_items_are_prepared_as_by_the_reference(count, dim, cosine, dtype):
    items = normal(count, dim, dtype=dtype)
    items[7::11], items[8::13, -1:] = 0, math.inf
    norms, largest, codes, bounds = torch.ops.metarec.cosine_topk_prepare(items, cosine, True)
    wanted = reference.cosine_topk_prepare(items, cosine, True)
    torch.testing.assert_close(norms, wanted[0])
    torch.testing.assert_close(largest, wanted[1])
    assert torch.equal(codes, wanted[2])
    torch.testing.assert_close(bounds, wanted[3])


def test_prepared_items_give_the_very_same_results():
    items = normal(7000, 48)
    for batch in (1, 3, 15, 16, 100):
        queries = normal(batch, 48, seed=batch)
        plain, prepared = cosine_topk(queries, items, 13), cosine_topk(queries, prepare_items(items), 13)
        assert torch.equal(plain[0], prepared[0])
        assert torch.equal(plain[1], prepared[1])


@pytest.mark.parametrize("batch", [1, 3, 40])
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_bfloat16_gives_what_its_values_give_in_float32(batch, prepared, similarity):
    queries, items = (normal(rows, 37, dtype=torch.bfloat16, seed=rows) for rows in (batch, 5000))
    items[11, 3], items[12, 36], items[13] = math.nan, math.inf, 0
    table = prepare_items(items, similarity=similarity) if prepared else items
    scores, rows = cosine_topk(queries, table, 30, similarity=similarity)
    wanted = cosine_topk(queries.float(), items.float(), 30, similarity=similarity)
    assert torch.equal(scores, wanted[0]) and torch.equal(rows, wanted[1])
    if prepared:
        assert table.items.dtype == torch.bfloat16 and table.items.data_ptr() == items.data_ptr()


def test_a_query_gets_the_same_alone_and_in_a_batch():
    queries, items = normal(90, 20), normal(6000, 20, seed=1)
    scores, rows = cosine_topk(queries, items, 9)
    for index in range(0, 90, 7):
        alone = cosine_topk(queries[index : index + 1], items, 9)
        assert torch.equal(alone[0][0], scores[index])
        assert torch.equal(alone[1][0], rows[index])


@pytest.mark.parametrize("batch", [1, 40])
def test_near_ties_are_decided_in_double_precision(batch):
    # All items lie within 1e-5 of each other: float32 sums and 8-bit codes cannot tell them apart.
    items = normal(1, 64) + 1e-5 * normal(3000, 64, seed=1)
    queries = normal(1, 64).expand(batch, 64) + 0.1 * normal(batch, 64, seed=2)
    for similarity in ("cosine", "dot"):
        scores, rows = cosine_topk(
            queries, prepare_items(items, similarity=similarity), 30, similarity=similarity
        )
        expected_scores, expected_rows = brute_force(queries, items, 30, None, similarity)
        assert torch.equal(scores, expected_scores)
        assert torch.equal(rows, expected_rows)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e18, 1e30, 1e38])
@pytest.mark.parametrize("batch", [1, 40])
def test_very_small_and_large_vectors(batch, scale):
    queries, items = normal(batch, 12), (normal(2000, 12, seed=1) * scale).clamp(-3e38, 3e38)
    items[::3] *= 1e-3
    for similarity in ("cosine", "dot"):
        rows = cosine_topk(queries, prepare_items(items, similarity=similarity), 10, similarity=similarity)[1]
        finite = brute_force(queries.double(), items.double(), 10, None, similarity)
        if scale < 1e38 or similarity == "cosine":
            assert torch.equal(rows, finite[1])


@pytest.mark.parametrize("batch", [1, 40])
def test_vectors_whose_squares_are_lost(batch):
    queries, items = normal(batch, 16, dtype=torch.float64), normal(500, 16, dtype=torch.float64, seed=1)
    _, expected = cosine_topk(queries, items, 5, similarity="dot")
    _, rows = cosine_topk(queries * 2.0**-600, items, 5, similarity="dot")
    assert torch.equal(rows, expected)
    _, rows = cosine_topk(queries, items * 2.0**-600, 5, similarity="dot")
    assert torch.equal(rows, expected)


@pytest.mark.parametrize("batch", [1, 40])
@pytest.mark.parametrize("prepared", [False, True])
def test_nan_and_infinity_never_win(batch, prepared):
    queries, items = normal(batch, 8), normal(500, 8, seed=1)
    items[7], items[11, 3], items[13, 0] = math.nan, math.nan, math.inf
    table = prepare_items(items) if prepared else items
    scores, rows = cosine_topk(queries, table, 500)
    assert not scores.isnan().any()
    assert not torch.isin(rows, torch.tensor([7, 11, 13])).any()
    assert (rows[:, -3:] == -1).all() and (scores[:, -3:] == -math.inf).all()
    queries[0, 0] = math.nan
    scores, rows = cosine_topk(queries, table, 4)
    assert (rows[0] == -1).all() and (scores[0] == -math.inf).all()
    assert (rows[1:] >= 0).all()


@pytest.mark.parametrize("batch", [1, 40])
def test_zero_vectors_have_similarity_zero(batch):
    queries, items = normal(batch, 8), normal(100, 8, seed=1)
    items[5] = 0
    scores, rows = cosine_topk(queries, items, 100)
    assert (scores[rows == 5] == 0).all()
    queries[0] = 0
    scores, rows = cosine_topk(queries, items, 3)
    assert torch.equal(rows[0], torch.arange(3)) and (scores[0] == 0).all()


@pytest.mark.parametrize("batch", [1, 40])
def test_the_tail_is_marked_where_items_run_out(batch):
    queries, items = normal(batch, 4), normal(6, 4, seed=1)
    scores, rows = cosine_topk(queries, items, 5, excluded=ragged([[5, 0, 2, 2]] * batch))
    assert (rows[:, 3:] == -1).all() and (scores[:, 3:] == -math.inf).all()
    assert torch.equal(rows[:, :3].sort().values, torch.tensor([[1, 3, 4]]).expand(batch, 3))


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_excluded_rows_in_any_order_repeated_or_out_of_range(data):
    count = data.draw(st.integers(1, 12))
    lists = data.draw(st.lists(st.lists(st.integers(-1, count), max_size=8), min_size=1, max_size=6))
    queries, items = normal(len(lists), 3), normal(count, 3, seed=1)
    excluded = ragged(lists)
    if all(0 <= row < count for rows in lists for row in rows):
        _, rows = cosine_topk(queries, items, count, excluded=excluded)
        expected = brute_force(queries, items, count, excluded, "cosine")
        assert torch.equal(rows, expected[1])
    else:
        with pytest.raises(ValueError, match=f"excluded rows must be from 0 to {count - 1}"):
            cosine_topk(queries, items, count, excluded=excluded)


@pytest.mark.skipif(not NATIVE, reason="no native kernels in this build")
@pytest.mark.parametrize("batch", [1, 3, 40, 2500])
@pytest.mark.parametrize("prepared", [False, True])
def test_bit_equal_for_any_number_of_threads(batch, prepared, threads):
    queries, items = normal(batch, 32), normal(9000, 32, seed=1)
    table = prepare_items(items) if prepared else items
    runs = []
    for number in (1, 2, 3):
        threads(number)
        runs.append(cosine_topk(queries, table, 11))
    for scores, rows in runs[1:]:
        assert torch.equal(scores, runs[0][0]) and torch.equal(rows, runs[0][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(dtype):
    queries, items = normal(3, 5, dtype=dtype), normal(20, 5, dtype=dtype, seed=1)
    compact = dtype != torch.float64
    torch.library.opcheck(torch.ops.metarec.cosine_topk_prepare.default, (items, True, compact))
    table = prepare_items(items)
    excluded = ragged([[1], [], [2, 3]])
    args = (
        queries,
        items,
        table.norms,
        table.largest_norm,
        table.codes,
        table.code_bounds,
        4,
        *excluded,
        True,
    )
    torch.library.opcheck(torch.ops.metarec.cosine_topk.default, args)


def test_compiles():
    items = prepare_items(normal(50, 6))

    def best(queries):
        return cosine_topk(queries * 2, items, 3)[1] + 1

    queries = normal(4, 6, seed=1)
    assert torch.equal(torch.compile(best, backend="aot_eager", fullgraph=True)(queries), best(queries))


def test_results_carry_no_gradient():
    queries, items = normal(2, 4).requires_grad_(), normal(9, 4).requires_grad_()
    scores, rows = cosine_topk(queries, items, 3)
    assert not scores.requires_grad and not rows.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 10}, "k must be from 0 to the number of items, 9, got 10"),
        ({"k": -1}, "k must be from 0"),
        ({"queries": torch.zeros(2, 3)}, "queries have 3 dimensions, items have 4"),
        ({"queries": torch.zeros(2, 4, dtype=torch.float64)}, "items must be torch.float64"),
        ({"queries": torch.zeros(4)}, "queries must have two dimensions"),
        ({"items": torch.zeros(9, 4, dtype=torch.int64)}, "items must be float32, float64 or bfloat16"),
        ({"items": prepare_items(torch.ones(9, 4), similarity="dot")}, "prepared for 'dot', not 'cosine'"),
        ({"similarity": "euclidean"}, "similarity must be 'cosine' or 'dot', got 'euclidean'"),
        ({"excluded": (torch.tensor([0, 1]), torch.tensor([1]))}, r"excluded offsets must have shape \[3\]"),
        (
            {"excluded": (torch.tensor([0, 2, 1]), torch.tensor([1]))},
            "excluded offsets must ascend from 0 to 1",
        ),
        (
            {"excluded": (torch.tensor([0, 1, 1]), torch.tensor([9]))},
            "excluded rows must be from 0 to 8, got 9",
        ),
        ({"excluded": (torch.tensor([0, 1, 1]), torch.tensor([1.0]))}, "excluded rows must be int64"),
    ],
)
def test_bad_arguments_are_named(change, message):
    args = {"queries": torch.ones(2, 4), "items": torch.ones(9, 4), "k": 2, **change}
    with pytest.raises(ValueError, match=message):
        cosine_topk(**args)


def test_prepared_items_are_a_record_of_tensors():
    prepared = prepare_items(normal(33, 5))
    assert isinstance(prepared, PreparedItems)
    assert prepared.norms.shape == (33,) and prepared.norms.dtype == torch.float64

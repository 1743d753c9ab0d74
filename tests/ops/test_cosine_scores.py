import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metarec.ops import cosine_scores, reference
from metarec.ops.library import NATIVE
from metarec.testing.ops.cosine_scores import gradient_of_scores, problem, samples


@pytest.mark.parametrize("sample", list(samples()), ids=str)
def test_equals_reference_in_double(sample):
    results = sample.call(*sample.arguments())
    sample.check(results)
    assert results["scores"].dtype == (torch.float64 if sample.dtype == torch.float64 else torch.float32)
    assert all(value.dtype == sample.dtype for name, value in results.items() if name != "scores")


@pytest.mark.parametrize("sparse_grad", [False, True])
def test_gradients_equal_those_of_the_reference(sparse_grad):
    args = problem(30, 20, 9, 400)
    scores, inverse_norms = torch.ops.metarec.cosine_scores(*args, False)
    name = "cosine_scores_row_gradient" if sparse_grad else "cosine_scores_gradient"
    inputs = (gradient_of_scores(400), scores, inverse_norms, *args)
    got, wanted = getattr(torch.ops.metarec, name)(*inputs), getattr(reference, name)(*inputs)
    torch.testing.assert_close(got, wanted)


def test_row_gradients_are_of_the_distinct_rows_in_order():
    left, right, left_rows, right_rows = problem(1000, 50, 4, 300)
    left.requires_grad_()
    scores = cosine_scores(left, right, left_rows, right_rows, sparse_grad=True)
    (gradient,) = torch.autograd.grad(scores.sum(), left)
    assert gradient.is_coalesced()
    assert torch.equal(gradient.indices()[0], left_rows.unique())


def test_gradcheck():
    left, right, left_rows, right_rows = problem(4, 3, 5, 12)

    def scores(left, right):
        return cosine_scores(left, right, left_rows, right_rows)

    assert torch.autograd.gradcheck(scores, (left.requires_grad_(), right.requires_grad_()))


def test_only_the_gradients_asked_for_are_computed():
    left, right, left_rows, right_rows = problem(4, 3, 5, 12)
    right.requires_grad_()
    cosine_scores(left, right, left_rows, right_rows).sum().backward()
    assert left.grad is None and right.grad is not None


def test_a_second_derivative_raises():
    left, *others = problem(4, 3, 5, 12)
    (gradient,) = torch.autograd.grad(
        cosine_scores(left.requires_grad_(), *others).sum(), left, create_graph=True
    )
    with pytest.raises(RuntimeError, match="differentiated once only"):
        gradient.sum().backward()


@pytest.mark.parametrize("sparse_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_zero_vectors_have_similarity_and_gradient_zero(dtype, sparse_grad):
    left, right, _, _ = problem(3, 3, 8, 0, dtype)
    left[1], right[2] = 0, 0
    rows = torch.arange(9)
    leaves = left.requires_grad_(), right.requires_grad_()
    scores = cosine_scores(*leaves, rows // 3, rows % 3, sparse_grad=sparse_grad)
    scores.sum().backward()
    assert (scores.reshape(3, 3)[1] == 0).all() and (scores.reshape(3, 3)[:, 2] == 0).all()
    gradients = [leaf.grad.to_dense() for leaf in leaves]
    assert (gradients[0][1] == 0).all() and (gradients[1][2] == 0).all()
    assert all(gradient.isfinite().all() and (gradient != 0).any() for gradient in gradients)


@pytest.mark.parametrize("scale", [1e-11, 1e-13])
def test_epsilon_is_where_it_is_said_to_be(scale):
    left, right = torch.tensor([[[scale, 0.0]], [[3.0, 4.0]]], dtype=torch.float64)
    row = torch.zeros(1, dtype=torch.int64)
    score = cosine_scores(left.requires_grad_(), right, row, row)
    score.backward()
    assert score.item() == pytest.approx(0.6 * min(1.0, scale / 1e-12))
    expected = [0, 0.8 / scale if scale > 1e-12 else 0]
    assert left.grad[0].tolist() == pytest.approx(expected, abs=1e-15 / scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_gradients_are_rounded_to_the_nearest(dtype):
    left, right, left_rows, right_rows = problem(400, 30, 12, 2000, torch.bfloat16)
    leaf = left.to(dtype).requires_grad_()
    cosine_scores(leaf, right.to(dtype), left_rows, right_rows).backward(gradient_of_scores(2000).float())
    if dtype == torch.float32:
        rounded = leaf.grad.bfloat16()
        same = left.clone().requires_grad_()
        cosine_scores(same, right, left_rows, right_rows).backward(gradient_of_scores(2000).float())
        assert torch.equal(same.grad, rounded)
    assert leaf.grad.dtype == dtype


@pytest.mark.parametrize("bits", [0x3F808000, 0x3F818000, 0x7FFFFFFF])
def test_bfloat16_gradients_halfway_are_rounded_to_even_and_nan_stays(bits):
    left, right = torch.zeros(2, 1, 18, dtype=torch.bfloat16)
    left[0, 0], right[0, [1, 9, 16, 17]] = 1, 1  # orthogonal, so that the gradient is half that of the score
    value = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
    row = torch.zeros(1, dtype=torch.int64)
    cosine_scores(left.requires_grad_(), right, row, row).backward(2 * value)
    expected = value.bfloat16().expand(4)
    torch.testing.assert_close(left.grad[0, [1, 9, 16, 17]], expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("sparse_grad", [False, True])
def test_gradient_descent_finds_the_angles_of_a_factorisation(sparse_grad):
    generator = torch.Generator().manual_seed(0)
    tables = [torch.randn(6, 3, generator=generator, dtype=torch.float64) for _ in range(4)]
    pairs = torch.arange(36) // 6, torch.arange(36) % 6
    truth = cosine_scores(*tables[:2], *pairs)
    left, right = (table.requires_grad_() for table in tables[2:])
    for _ in range(150):
        scores = cosine_scores(left, right, *pairs, sparse_grad=sparse_grad)
        gradients = torch.autograd.grad((scores - truth).square().sum(), (left, right))
        with torch.no_grad():
            for table, gradient in zip((left, right), gradients, strict=True):
                table -= 0.5 * gradient
    assert (scores - truth).abs().max() < 1e-3


@pytest.mark.skipif(not NATIVE, reason="no native kernels in this build")
@pytest.mark.parametrize("sparse_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_bit_equal_for_any_number_of_threads(dtype, sparse_grad, threads):
    left, right, left_rows, right_rows = problem(3000, 500, 19, 100_000, dtype)
    leaves = left.requires_grad_(), right.requires_grad_()
    runs = []
    for number in (1, 2, 3):
        threads(number)
        scores = cosine_scores(*leaves, left_rows, right_rows, sparse_grad=sparse_grad)
        gradients = torch.autograd.grad(scores, leaves, gradient_of_scores(100_000).to(scores.dtype))
        runs.append((scores, *(gradient.to_dense() for gradient in gradients)))
    for run in runs[1:]:
        assert all(torch.equal(value, wanted) for value, wanted in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(dtype):
    left, right, left_rows, right_rows = problem(5, 4, 3, 9, dtype)
    pairs = (left.requires_grad_(), right.requires_grad_(), left_rows, right_rows)
    torch.library.opcheck(torch.ops.metarec.cosine_scores.default, (*pairs, False))
    plain = tuple(tensor.detach() for tensor in pairs)
    scores, inverse_norms = torch.ops.metarec.cosine_scores(*plain, False)
    for op in (torch.ops.metarec.cosine_scores_gradient, torch.ops.metarec.cosine_scores_row_gradient):
        torch.library.opcheck(op.default, (torch.ones_like(scores), scores, inverse_norms, *plain))


def test_compiles_with_gradient():
    left, right, left_rows, right_rows = problem(5, 4, 3, 9)

    def loss(left):
        return (cosine_scores(left * 2, right, left_rows, right_rows) - 1).square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    plain, traced = left.clone().requires_grad_(), left.clone().requires_grad_()
    loss(plain).backward()
    compiled(traced).backward()
    torch.testing.assert_close(traced.grad, plain.grad)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_rows_in_any_order_repeated_or_out_of_range(data):
    left, right = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    pairs = data.draw(
        st.lists(st.tuples(st.integers(-1, left), st.integers(-1, right)), min_size=1, max_size=20)
    )
    tables = problem(left, right, 3, 0)[:2]
    index = data.draw(st.sampled_from([torch.int32, torch.int64]))
    left_rows, right_rows = torch.tensor(pairs, dtype=index).T.contiguous()
    wrong = [row for row, _ in pairs if not 0 <= row < left]
    if wrong:
        with pytest.raises(
            ValueError, match=f"rows of the first table must be from 0 to {left - 1}, got {wrong[0]} at"
        ):
            cosine_scores(*tables, left_rows, right_rows)
    elif any(not 0 <= row < right for _, row in pairs):
        with pytest.raises(ValueError, match=f"rows of the second table must be from 0 to {right - 1}"):
            cosine_scores(*tables, left_rows, right_rows)
    else:
        scores = cosine_scores(*tables, left_rows, right_rows).numpy()
        u, v = (table.numpy() for table in tables)
        for (row, column), score in zip(pairs, scores, strict=True):
            expected = u[row] @ v[column] / np.linalg.norm(u[row]) / np.linalg.norm(v[column])
            assert score == pytest.approx(expected, abs=1e-14)


def test_strided_arguments_are_read_as_they_are():
    left, right, left_rows, right_rows = problem(6, 5, 4, 20)
    strided = left.T.contiguous().T, right.T.contiguous().T
    rows = [torch.stack([value, value], 1)[:, 0] for value in (left_rows, right_rows)]
    expected = cosine_scores(left, right, left_rows, right_rows)
    torch.testing.assert_close(cosine_scores(*strided, *rows), expected)


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (
            0,
            torch.zeros(3, 2, dtype=torch.int64),
            "left must be float32, float64 or bfloat16, got torch.int64",
        ),
        (1, torch.zeros(3), r"right must have two dimensions, got shape \[3\]"),
        (1, torch.zeros(3, 2).double(), "right must be torch.float32"),
        (1, torch.zeros(3, 4), "left has 2 dimensions, right has 4"),
        (2, torch.zeros(2), "left_rows must be int32 or int64 of one dimension"),
        (3, torch.zeros(2, 1, dtype=torch.int64), "right_rows must be int32 or int64 of one dimension"),
        (3, torch.zeros(3, dtype=torch.int64), "2 left_rows cannot be paired with 3 right_rows"),
        (2, torch.tensor([0, 3]), "rows of the first table must be from 0 to 2, got 3 at 1"),
        (3, torch.tensor([-1, 0]), "rows of the second table must be from 0 to 2, got -1 at 0"),
    ],
)
def test_bad_arguments_are_named(index, value, message):
    args = [torch.ones(3, 2), torch.ones(3, 2), torch.tensor([0, 1]), torch.tensor([0, 1])]
    args[index] = value
    with pytest.raises(ValueError, match=message):
        cosine_scores(*args)

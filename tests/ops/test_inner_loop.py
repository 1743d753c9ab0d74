import importlib
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from torch import Tensor

from metarec.ops.inner_loop import (
    InnerHead,
    InnerSteps,
    inner_loop,
    inner_loop_effects,
    inner_loop_predict,
    inner_loop_state,
)
from metarec.ops.library import NATIVE
from metarec.testing.ops.inner_loop import (
    Problem,
    effects,
    gradients_of,
    kept,
    of_all_sizes,
    of_any_steps,
    of_each_function,
    of_each_way,
)

module = importlib.import_module("metarec.ops.inner_loop")  # the package names the function so


def assert_close(got, wanted, tolerance):
    scale = wanted.abs().amax().clamp_min(1) if wanted.numel() else 1
    torch.testing.assert_close(got.double() / scale, wanted / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("sample", list(of_all_sizes()), ids=str)
def test_equals_autograd(sample):
    results = sample.call(*sample.arguments())
    sample.check(results)
    assert all(value.dtype == sample.dtype for value in results.values())


@pytest.mark.parametrize("sample", list(of_each_function()), ids=str)
def test_equals_autograd_for_each_activation_and_loss(sample):
    sample.check(sample.call(*sample.arguments()))


def activated(activation, inputs):
    """A head that gives its activation of a number."""
    layer, none, start = (torch.ones(1, 1), torch.zeros(1)), torch.zeros(0), torch.tensor([0, 0])
    head, steps = InnerHead([layer, layer], activation), InnerSteps(0, 0.1)
    ends = torch.tensor([0, len(inputs)])
    return inner_loop(head, steps, none[:, None], none, start, inputs[:, None], ends)


@pytest.mark.parametrize(
    ("activation", "function", "slope", "units"),
    [
        ("gelu", lambda x: x * ndtr(x), lambda x: ndtr(x) + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi), 5),
        ("tanh", np.tanh, lambda x: 1 - np.tanh(x) ** 2, 2),
    ],
)
def test_activations_in_single_precision_are_right_to_the_last_places(activation, function, slope, units):
    small = torch.logspace(-20, 0, 1000)
    inputs = torch.cat([torch.linspace(-13, 13, 20001), small, -small]).requires_grad_()
    got = activated(activation, inputs)
    (gradient,) = torch.autograd.grad(got.sum(), inputs)
    x = inputs.detach().double().numpy()
    wanted = function(x)
    errors = np.abs(got.detach().double().numpy() - wanted) / np.spacing(np.abs(wanted).astype(np.float32))
    assert errors.max() <= units
    np.testing.assert_allclose(gradient, slope(x), rtol=0, atol=3e-7)


def test_activations_of_what_is_not_finite():
    inputs = torch.tensor([torch.inf, -torch.inf, torch.nan])
    torch.testing.assert_close(activated("tanh", inputs), torch.tanh(inputs), equal_nan=True)
    torch.testing.assert_close(activated("gelu", inputs)[[0, 2]], inputs[[0, 2]], equal_nan=True)


@pytest.mark.parametrize("sample", [*of_each_way(), *of_any_steps()], ids=str)
def test_equals_autograd_for_each_way_to_step_and_any_number_of_steps(sample):
    sample.check(sample.call(*sample.arguments()))


def test_meta_gradient_of_least_squares_is_known():
    """K steps on a linear head with Hessian H leave the gradient (I - a H)^K of the last weights."""
    problem = Problem([9], [4], [3], steps=6)
    support, targets, weights, query, weight, bias, rate = problem.leaves
    inputs, asked = (torch.cat([x, torch.ones(len(x), 1).double()], 1) for x in (support, query))
    shares = weights / weights.sum()
    hessian = inputs.mT @ (shares[:, None] * inputs)
    left = torch.linalg.matrix_power(torch.eye(4).double() - rate * hessian, 6)
    start = torch.cat([weight[0], bias])
    best = torch.linalg.solve(hessian, inputs.mT @ (shares * targets))
    leaves = [leaf.clone().requires_grad_() for leaf in problem.leaves]
    predictions = problem.run(leaves)
    torch.testing.assert_close(
        predictions.detach(), asked @ (best + left @ (start - best)), rtol=1e-12, atol=1e-12
    )
    gradient = torch.autograd.grad(predictions.sum(), leaves[4:6])
    torch.testing.assert_close(
        torch.cat([gradient[0][0], gradient[1]]), left.mT @ asked.sum(0), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    ("widths", "rates", "activation"),
    [([9, 8, 7], "scalar", "relu"), ([5, 4], "full", "gelu"), ([7], "rank one", "relu")],
)
def test_the_backward_pass_is_the_same_where_it_takes_the_steps_again(
    widths, rates, activation, order, monkeypatch
):
    problem = Problem([4, 0, 30, 2], [2, 1, 0, 100], widths, rates=rates, activation=activation)
    kept = gradients_of(lambda leaves: problem.run(leaves, order), problem.leaves)
    monkeypatch.setattr(module, "_MOST_KEPT", 0)
    again = gradients_of(lambda leaves: problem.run(leaves, order), problem.leaves)
    for value, wanted in zip([again[0], *again[1]], [kept[0], *kept[1]], strict=True):
        assert_close(value, wanted, 1e-12)


PEAK = """
import re
from pathlib import Path
import torch
from metarec.ops import InnerHead, InnerSteps, inner_loop

widths = (256, 64, 64, 1)
layers = [(torch.randn(h, w) / 16, torch.zeros(h)) for w, h in zip(widths, widths[1:])]
head = InnerHead([(w.requires_grad_(), b.requires_grad_()) for w, b in layers])

def peak():  # of this program alone, which getrusage's is not
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

def call(counts):
    offsets, ends = torch.tensor([0, *counts]).cumsum(0), torch.arange(len(counts) + 1) * 10
    support, targets, query = torch.randn(sum(counts), 256), torch.randn(sum(counts)), torch.randn(ends[-1], 256)
    before = peak()
    inner_loop(head, InnerSteps(5, 0.01), support, targets, offsets, query, ends).sum().backward()
    return peak() - before

call([20] * 4)
print(call([1 + task * 199 // 511 for task in range(512)]))
"""


@pytest.mark.skipif(not NATIVE, reason="the reference is free with memory")
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are measured in the units of Linux")
def test_many_tasks_take_little_memory():
    """A twentieth of the 828 MB that torch.func.vmap takes for these tasks; all their steps fill 213 MB."""
    command = [sys.executable, "-P", "-c", PEAK]  # -P: the metarec that is installed
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) <= 41


def test_first_order_without_gradients_of_rates_equals_the_one_with_them():
    problem = Problem([4, 0, 3], [2, 1, 5], [6, 5, 4], rates="per step")
    _, wanted = gradients_of(lambda leaves: problem.run(leaves, 1), problem.leaves)
    leaves = [leaf.clone().requires_grad_() for leaf in problem.leaves]
    leaves[-1] = problem.leaves[-1]
    predictions = problem.run(leaves, 1)
    weights = torch.linspace(-1, 1, predictions.numel(), dtype=torch.float64)
    found = torch.autograd.grad((predictions * weights).sum(), leaves[:-1], allow_unused=True)
    for value, target in zip(found, wanted[:-1], strict=True):
        assert_close(torch.zeros_like(target) if value is None else value, target, 1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"order": 2},
        {"order": 2, "rates": "rank one", "activation": "gelu"},
        {"order": 2, "rates": "full", "loss": "gaussian"},
        {"order": 2, "rates": "per layer", "loss": "logistic", "pull": 0.4},
        {"order": 2, "adapt": "last", "reduction": "sum"},
    ],
)
def test_gradcheck(options):
    order = options.pop("order", 2)
    problem = Problem([2, 0, 3], [1, 2, 1], [3, 4, 3], steps=2, **options)
    leaves = [leaf.requires_grad_() for leaf in problem.leaves]
    assert torch.autograd.gradcheck(lambda *leaves: problem.run(leaves, order), leaves, fast_mode=True)


@pytest.mark.parametrize("sample", list(kept()), ids=str)
def test_a_state_predicts_as_the_loop_does(sample):
    sample.check(sample.call(*sample.arguments()))


def test_a_state_in_gram_form_is_small():
    problem = Problem([3, 2], [1, 1], [1000, 8], dtype=torch.float32)
    (head, steps, support, targets, offsets, *_), _ = problem.arguments(problem.leaves)
    state = inner_loop_state(head, steps, support, targets, offsets)
    assert [list(part.shape) for part in state] == [[5, 1000], [5, 8], [2, 17]]


@pytest.mark.parametrize("sample", list(effects()), ids=str)
def test_effects_are_those_of_a_support_without_the_rating(sample):
    sample.check(sample.call(*sample.arguments()))


def test_ratings_of_weight_zero_are_absent():
    problem = Problem([4, 2], [2, 2], [6, 5])
    problem.leaves[2][[1, 4, 5]] = 0
    got = problem.run(order=0)
    (head, steps, support, targets, _, query, query_offsets), weights = problem.arguments(problem.leaves)
    kept = torch.tensor([0, 2, 3])
    wanted = inner_loop(
        head, steps, support[kept], targets[kept], torch.tensor([0, 3, 3]), query, query_offsets,
        weights=weights[kept], order=0,
    )  # fmt: skip
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_no_weights_are_equal_weights():
    problem = Problem([4, 2], [2, 2], [6, 5])
    problem.leaves[2].fill_(0.3)
    arguments, weights = problem.arguments(problem.leaves)
    torch.testing.assert_close(inner_loop(*arguments), inner_loop(*arguments, weights=weights))


def test_order_zero_has_no_gradient():
    problem = Problem([2], [2], [3])
    assert not problem.run([leaf.requires_grad_() for leaf in problem.leaves], order=0).requires_grad


def test_a_second_derivative_raises():
    problem = Problem([2], [2], [3])
    leaves = [leaf.requires_grad_() for leaf in problem.leaves]
    (gradient, *_) = torch.autograd.grad(problem.run(leaves).sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once only"):
        gradient.sum().backward()


def raw_arguments(problem):
    (head, steps, support, targets, offsets, query, query_offsets), weights = problem.arguments(
        problem.leaves
    )
    return (
        (support, targets, weights, offsets, True),
        (query, query_offsets),
        (*module._network(head), *module._rates(head, steps)),
    )


@pytest.mark.parametrize("rates", ["per step", "rank one", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype, rates):
    problem = Problem([0, 2, 5], [1, 0, 3], [4, 3], rates=rates, dtype=dtype)
    ops = torch.ops.metarec

    def check(op, *arguments):
        torch.library.opcheck(op.default, arguments)

    support, query, rest = raw_arguments(problem)
    check(ops.inner_loop, *support, *query, *rest, 2, 0, 0)
    predictions, trace = ops.inner_loop(*support, *query, *rest, 2, 0, 0)
    wanted = [True] * 5 + [False, True, True, True]
    check(ops.inner_loop_backward, predictions, *support, *query, *rest, 2, 0, trace, wanted)
    check(ops.inner_loop_effects, *support, *query, *rest, 5 * 3)
    state = ops.inner_loop_state(*support, *rest)
    check(ops.inner_loop_state, *support, *rest)
    check(ops.inner_loop_predict, *state, support[3], *query, *rest[:3])


@pytest.mark.parametrize("order", [1, 2])
def test_compiles_with_gradient(order):
    problem = Problem([3, 0, 8], [2, 1, 4], [5, 4, 3])

    def loss(leaves: list[Tensor]) -> Tensor:
        return problem.run([leaf * 2 for leaf in leaves], order).square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    plain, traced = ([leaf.clone().requires_grad_() for leaf in problem.leaves] for _ in range(2))
    loss(plain).backward()
    compiled(traced).backward()
    for value, wanted in zip(traced, plain, strict=True):
        torch.testing.assert_close(value.grad, wanted.grad)


@pytest.mark.skipif(not NATIVE, reason="no native kernels in this build")
@pytest.mark.parametrize("rates", ["per step", "rank one", "full"])
@pytest.mark.parametrize("order", [1, 2])
def test_bit_equal_for_any_number_of_threads(order, rates, threads):
    counts = [task * 7 % 45 for task in range(90)]
    problem = Problem(counts, [task % 4 for task in range(90)], [20, 9, 5], rates=rates, dtype=torch.float32)
    runs = []
    for number in (1, 2, 3):
        threads(number)
        predictions, gradients = gradients_of(lambda leaves: problem.run(leaves, order), problem.leaves)
        runs.append([predictions, *gradients])
    for run in runs[1:]:
        assert all(torch.equal(value, wanted) for value, wanted in zip(run, runs[0], strict=True))


@given(st.lists(st.integers(-3, 8), min_size=1, max_size=6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_offsets_either_ascend_to_the_end_or_are_refused(offsets, of_queries):
    valid = offsets[0] == 0 and offsets[-1] == 5 and sorted(offsets) == offsets
    problem = Problem([5], [5], [2])
    good = torch.tensor([0] * (len(offsets) - 1) + [5])
    problem.support_offsets, problem.query_offsets = good, torch.tensor(offsets)
    if not of_queries:
        problem.support_offsets, problem.query_offsets = problem.query_offsets, good
    if valid and len(offsets) > 1:
        assert problem.run(order=0).shape == (5,)
    else:
        with pytest.raises(ValueError, match="offsets must ascend from 0 to 5"):
            problem.run(order=0)


def head_of(*widths, loss="squared", **options):
    layers = [
        (torch.zeros(height, width), torch.zeros(height)) for width, height in itertools.pairwise(widths)
    ]
    return InnerHead(layers, loss=loss, **options)


@pytest.mark.parametrize(
    ("head", "steps", "replaced", "message"),
    [
        (InnerHead([]), {}, {}, "head must have one to three layers, got 0"),
        (head_of(2, 3, 3, 3, 1), {}, {}, "head must have one to three layers, got 4"),
        (
            head_of(3, 1),
            {},
            {},
            r"support must be torch.float32 of shape \[n, 3\] on cpu, got torch.float32 of shape \[5, 2\]",
        ),
        (
            InnerHead([*head_of(2, 3).layers, *head_of(2, 1).layers]),
            {},
            {},
            r"weight of layer 1 must have shape \[1, 3\], got \[1, 2\]",
        ),
        (head_of(2, 1), {}, {"query": torch.zeros(3, 3)}, r"query must be torch.float32 of shape \[n, 2\]"),
        (head_of(2, 2), {}, {}, "the squared loss wants 1 outputs, got 2"),
        (head_of(2, 1, loss="gaussian"), {}, {}, "the gaussian loss wants 2 outputs, got 1"),
        (head_of(2, 1, loss="hinge"), {}, {}, "loss must be one of squared, logistic, gaussian, got 'hinge'"),
        (head_of(2, 1, activation="selu"), {}, {}, "activation must be one of relu, gelu, tanh, got 'selu'"),
        (head_of(2, 1, adapt="first"), {}, {}, "adapt must be one of all, last, got 'first'"),
        (head_of(2, 1), {"reduction": "max"}, {}, "reduction must be one of mean, sum, got 'max'"),
        (head_of(2, 1), {"count": -1}, {}, "count of steps must not be negative, got -1"),
        (
            head_of(2, 1),
            {"rates": torch.zeros(3, 1)},
            {},
            r"rates must be a number or go with shape \[2, 1\], got \[3, 1\]",
        ),
        (
            head_of(2, 1),
            {"rank_one_rates": [(torch.ones(1), torch.ones(2))]},
            {},
            r"rank_one_rates of layer 0 must have shape \[3\], got \[2\]",
        ),
        (head_of(2, 1), {"parameter_rates": []}, {}, "parameter_rates must be given for 1 layers, got 0"),
        (head_of(2, 1), {}, {"support": torch.zeros(5, 2).double()}, "support must be torch.float32"),
        (head_of(2, 1), {}, {"targets": torch.zeros(4)}, r"targets must have shape \[5\], got \[4\]"),
        (head_of(2, 1), {}, {"weights": torch.zeros(5, 1)}, r"weights must have shape \[5\], got \[5, 1\]"),
        (
            head_of(2, 1),
            {},
            {"support_offsets": torch.tensor([0, 5], dtype=torch.int32)},
            "support_offsets must be int64",
        ),
        (
            head_of(2, 1),
            {},
            {"query_offsets": torch.tensor([0, 1, 3])},
            r"query_offsets must have shape \[2\], got \[3\]",
        ),
        (head_of(2, 1), {}, {"order": 3}, "order must be 0, 1 or 2, got 3"),
    ],
)
def test_bad_arguments_are_named(head, steps, replaced, message):
    arguments = {
        "support": torch.zeros(5, 2),
        "targets": torch.zeros(5),
        "support_offsets": torch.tensor([0, 5]),
        "query": torch.zeros(3, 2),
        "query_offsets": torch.tensor([0, 3]),
    }
    with pytest.raises(ValueError, match=message):
        inner_loop(head, InnerSteps(**{"count": 2, "rates": 0.1, **steps}), **{**arguments, **replaced})


@pytest.mark.parametrize("adapt", ["all", "last"])
def test_bfloat16_inputs_give_what_they_give_in_float32(adapt):
    problem = Problem([3, 0, 8], [2, 1, 4], [5, 4, 3], adapt=adapt, dtype=torch.float32)
    narrow = [leaf.bfloat16() if i in (0, 3) else leaf for i, leaf in enumerate(problem.leaves)]
    wide = [leaf.float() for leaf in narrow]
    found, gradients = gradients_of(problem.run, narrow)
    wanted, expected = gradients_of(problem.run, wide)
    assert torch.equal(found, wanted)
    for gradient, leaf, value in zip(gradients, narrow, expected, strict=True):
        assert gradient.dtype == leaf.dtype and torch.equal(gradient, value.to(leaf.dtype))

    def others(leaves):
        (head, steps, *support, query, query_offsets), weights = problem.arguments(leaves)
        state = inner_loop_state(head, steps, *support, weights=weights)
        yield from state
        yield inner_loop_predict(head, state, support[-1], query, query_offsets)
        yield inner_loop_effects(head, steps, *support, query, query_offsets, weights=weights)

    for value, expected in zip(others(narrow), others(wide), strict=True):
        assert torch.equal(value, expected)


def test_inputs_of_bfloat16_go_with_float32_only():
    problem = Problem([2], [2], [3])
    problem.leaves[3] = problem.leaves[3].bfloat16()
    with pytest.raises(ValueError, match=r"query must be torch.float64 of shape .*, got torch.bfloat16"):
        problem.run()


def test_strided_arguments_are_read_as_they_are():
    problem = Problem([3, 4], [2, 2], [6, 5, 4])
    wanted = problem.run()
    strided = [
        torch.stack([leaf, leaf], -1)[..., 0] if leaf.dim() < 2 else leaf.mT.contiguous().mT
        for leaf in problem.leaves
    ]
    torch.testing.assert_close(problem.run(strided), wanted)

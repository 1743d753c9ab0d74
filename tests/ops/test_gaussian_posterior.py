import itertools

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metarec.ops import gaussian_posterior, gaussian_update, reference
from metarec.ops.library import NATIVE
from metarec.testing.ops.gaussian_posterior import UPDATE_TOLERANCE, gradients, posteriors, problem, updates


@pytest.mark.parametrize("sample", list(posteriors()), ids=str)
def test_equals_reference_in_double(sample):
    results = sample.call(*sample.arguments())
    sample.check(results)
    assert all(value.dtype == sample.dtype for value in results.values())


@pytest.mark.parametrize("sample", list(gradients()), ids=str)
def test_gradients_equal_those_of_torch_through_the_reference(sample):
    sample.check(sample.call(*sample.arguments()))


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("only", [None, 0, 1, 2])
def test_gradcheck(own, only):
    features, targets, weights, offsets, mean, precision = problem(
        [0, 2, 1, 4], 3, own_mean=own, own_precision=own
    )
    weights = weights + 0.1

    def function(features, targets, weights, mean, precision):
        result = gaussian_posterior(features, targets, weights, offsets, mean, (precision + precision.mT) / 2)
        return tuple(result) if only is None else result[only]

    leaves = [leaf.requires_grad_() for leaf in (features, targets, weights, mean, precision)]
    assert torch.autograd.gradcheck(function, leaves)


def test_a_second_derivative_raises():
    args = problem([2, 3], 2)
    features = args[0].requires_grad_()
    (gradient,) = torch.autograd.grad(
        gaussian_posterior(*args).log_evidence.sum(), features, create_graph=True
    )
    with pytest.raises(RuntimeError, match="differentiated once only"):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype):
    args = [
        arg.requires_grad_(arg.is_floating_point()) for arg in problem([0, 2, 5], 3, dtype, own_mean=True)
    ]
    torch.library.opcheck(torch.ops.metarec.gaussian_posterior.default, args)
    plain = [arg.detach() for arg in args]
    mean, cholesky, evidence = gaussian_posterior(*plain)
    torch.library.opcheck(
        torch.ops.metarec.gaussian_posterior_backward.default,
        (mean, cholesky, evidence, *plain, mean, cholesky),
    )
    step = (mean, cholesky, torch.ones_like(mean), torch.ones_like(evidence), torch.ones_like(evidence))
    torch.library.opcheck(torch.ops.metarec.gaussian_update.default, step)


def test_compiles_with_gradient():
    args = problem([3, 0, 8], 4)

    def loss(features: Tensor) -> Tensor:
        result = gaussian_posterior(features * 2, *args[1:])
        return result.log_evidence.sum() + result.mean.square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    plain, traced = args[0].clone().requires_grad_(), args[0].clone().requires_grad_()
    loss(plain).backward()
    compiled(traced).backward()
    torch.testing.assert_close(traced.grad, plain.grad)


def test_evidence_is_the_density_of_the_targets():
    features, targets, weights, offsets, mean, precision = problem([4, 1, 9], 3)
    weights[2] = 0
    evidence = gaussian_posterior(features, targets, weights, offsets, mean, precision).log_evidence
    for task, (begin, end) in enumerate(itertools.pairwise(offsets.tolist())):
        rows = torch.arange(begin, end)[weights[begin:end] > 0]
        design = features[rows]
        covariance = torch.diag(1 / weights[rows]) + design @ torch.linalg.inv(precision) @ design.mT
        normal = scipy.stats.multivariate_normal((design @ mean).numpy(), covariance.numpy())
        assert evidence[task].item() == pytest.approx(normal.logpdf(targets[rows].numpy()), abs=1e-10)


def test_predictions_are_those_of_the_gaussian_process():
    features, targets, weights, offsets, mean, precision = problem([12], 4)
    weights = weights + 0.5
    posterior = gaussian_posterior(features, targets, weights, offsets, mean, precision)
    at = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    prior_covariance = torch.linalg.inv(precision)
    gain = at @ prior_covariance @ features.mT
    noisy = features @ prior_covariance @ features.mT + torch.diag(1 / weights)
    predicted = at @ mean + gain @ torch.linalg.solve(noisy, targets - features @ mean)
    variance = at @ prior_covariance @ at.mT - gain @ torch.linalg.solve(noisy, gain.mT)
    torch.testing.assert_close(at @ posterior.mean[0], predicted, rtol=1e-9, atol=1e-9)
    half = torch.linalg.solve_triangular(posterior.cholesky[0], at.mT, upper=False)
    torch.testing.assert_close(half.mT @ half, variance, rtol=1e-9, atol=1e-9)


def test_an_observation_of_precision_zero_is_absent():
    features, targets, weights, offsets, mean, precision = problem([5], 3)
    weights[3] = 0
    targets[3] = 1e6
    keep = torch.tensor([0, 1, 2, 4])
    without = gaussian_posterior(
        features[keep], targets[keep], weights[keep], torch.tensor([0, 4]), mean, precision
    )
    for value, wanted in zip(
        gaussian_posterior(features, targets, weights, offsets, mean, precision), without, strict=True
    ):
        torch.testing.assert_close(value, wanted)


def test_extreme_precisions_keep_the_evidence_finite():
    features, targets, weights, offsets, mean, precision = problem([300], 2)
    weights = torch.where(torch.arange(300) % 2 == 0, 1e-30, 1e30).double()
    args = (features * 1e-15, targets * 1e-15, weights, offsets, mean, precision)
    torch.testing.assert_close(gaussian_posterior(*args)[2], reference.gaussian_posterior(*args)[2])


@pytest.mark.parametrize("sample", list(updates()), ids=str)
def test_updates_in_any_order_equal_the_batch(sample):
    sample.check(sample.call(*sample.arguments()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forgetting_what_was_added_changes_nothing(dtype):
    args = problem([4, 7, 0], 6, dtype)
    before = gaussian_posterior(*args)[:2]
    generator = torch.Generator().manual_seed(5)
    observation = [torch.randn(shape, generator=generator).to(dtype) for shape in ((3, 6), (3,))]
    weights = torch.tensor([0.5, 2.0, 1.0], dtype=dtype)
    added = gaussian_update(*before, *observation, weights)
    assert not torch.allclose(added[0], before[0], atol=1e-3)
    for value, wanted in zip(gaussian_update(*added, *observation, -weights), before, strict=True):
        torch.testing.assert_close(
            value, wanted, rtol=10 * UPDATE_TOLERANCE[dtype], atol=10 * UPDATE_TOLERANCE[dtype]
        )


def test_update_equals_its_reference():
    mean, cholesky, _ = gaussian_posterior(*problem([4, 7, 0], 6))
    observation = (
        torch.ones(3, 6).double(),
        torch.arange(3).double(),
        torch.tensor([1.0, -0.01, 0.0]).double(),
    )
    for value, wanted in zip(
        gaussian_update(mean, cholesky, *observation),
        reference.gaussian_update(mean, cholesky, *observation),
        strict=True,
    ):
        torch.testing.assert_close(value, wanted)


@pytest.mark.skipif(not NATIVE, reason="no native kernels in this build")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("own", [False, True])
def test_bit_equal_for_any_number_of_threads(dtype, own, threads):
    counts = np.random.default_rng(0).integers(0, 60, 700).tolist()
    args = [arg.requires_grad_(arg.is_floating_point()) for arg in problem(counts, 12, dtype, own, own)]
    runs = []
    for number in (1, 2, 3):
        threads(number)
        results = gaussian_posterior(*args)
        gradients = torch.autograd.grad(
            sum(value.sum() for value in results), [arg for arg in args if arg.requires_grad]
        )
        runs.append((*results, *gradients))
    for run in runs[1:]:
        assert all(torch.equal(value, wanted) for value, wanted in zip(run, runs[0], strict=True))


@given(st.lists(st.integers(-3, 8), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_offsets_either_ascend_to_the_end_or_are_refused(offsets):
    valid = offsets[0] == 0 and offsets[-1] == 5 and sorted(offsets) == offsets
    args = list(problem([5], 2))
    args[3] = torch.tensor(offsets)
    if valid:
        assert gaussian_posterior(*args).mean.shape == (len(offsets) - 1, 2)
    else:
        with pytest.raises(ValueError, match="offsets must ascend from 0 to 5"):
            gaussian_posterior(*args)


def replaced(index, value):
    args = list(problem([2, 3], 2))
    args[index] = value
    return args


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.zeros(5, 2, dtype=torch.int64), "features must be float32 or float64, got torch.int64"),
        (0, torch.zeros(5).double(), "features must have two dimensions"),
        (1, torch.zeros(4).double(), r"targets must have shape \[5\], got \[4\]"),
        (1, torch.zeros(5), "targets must be torch.float64"),
        (
            2,
            torch.tensor([1.0, 1, -1, 1, 1]).double(),
            "precision must be finite and not negative, got -1.0+ at 2",
        ),
        (
            2,
            torch.tensor([1.0, 1, 1, 1, torch.nan]).double(),
            "precision must be finite and not negative, got nan at 4",
        ),
        (3, torch.tensor([0, 2, 5], dtype=torch.int32), "offsets must be int64"),
        (4, torch.zeros(3, 2).double(), r"prior_mean must have shape \[2\] or \[2, 2\], got \[3, 2\]"),
        (5, torch.zeros(2).double(), "prior_precision must have shape"),
        (5, -torch.eye(2).double(), "prior precision is not positive definite"),
        (
            5,
            torch.stack([torch.eye(2), torch.zeros(2, 2)]).double(),
            "prior precision of task 1 is not positive definite",
        ),
        (0, torch.full((5, 2), torch.nan).double(), "posterior precision of task 0 is not positive definite"),
    ],
)
def test_bad_arguments_are_named(index, value, message):
    with pytest.raises(ValueError, match=message):
        gaussian_posterior(*replaced(index, value))


def test_bad_updates_are_named():
    mean, cholesky = torch.zeros(2, 3), torch.eye(3).expand(2, 3, 3)
    ones = torch.ones(2)
    with pytest.raises(ValueError, match="updated precision of task 1 is not positive definite"):
        gaussian_update(mean, cholesky, torch.ones(2, 3), ones, torch.tensor([1.0, -0.5]))
    with pytest.raises(ValueError, match="precision must be finite, got inf at 0"):
        gaussian_update(mean, cholesky, torch.ones(2, 3), ones, torch.tensor([torch.inf, 1.0]))
    with pytest.raises(ValueError, match=r"cholesky must have shape \[2, 3, 3\]"):
        gaussian_update(mean, cholesky[0], torch.ones(2, 3), ones, ones)


def test_bfloat16_features_give_what_they_give_in_float32():
    features, *rest = problem([3, 0, 8], 5, torch.float32)
    narrow = features.bfloat16().requires_grad_()
    wide = narrow.detach().float().requires_grad_()
    found, wanted = (gaussian_posterior(given, *rest) for given in (narrow, wide))
    for value, expected in zip(found, wanted, strict=True):
        assert torch.equal(value, expected)
    for result in (found, wanted):
        (result.log_evidence.sum() + result.mean.square().sum()).backward()
    assert narrow.grad.dtype == torch.bfloat16 and torch.equal(narrow.grad, wide.grad.bfloat16())

    mean, cholesky, _ = wanted
    observation = torch.ones(3), torch.full((3,), 0.5)
    found, wanted = (
        gaussian_update(mean, cholesky, given[:3].detach(), *observation) for given in (narrow, wide)
    )
    for value, expected in zip(found, wanted, strict=True):
        assert torch.equal(value, expected)


def test_only_features_may_be_bfloat16():
    features, *rest = problem([3, 2], 2)
    with pytest.raises(ValueError, match=r"features must be float32 or float64, got torch.bfloat16"):
        gaussian_posterior(features.bfloat16(), *rest)
    narrow = [value.bfloat16() if value.is_floating_point() else value for value in rest]
    with pytest.raises(ValueError, match=r"targets must be torch.float32 on cpu, got torch.bfloat16"):
        gaussian_posterior(features.float(), *narrow)


def test_strided_arguments_are_read_as_they_are():
    features, targets, weights, offsets, mean, precision = problem([3, 4], 5)
    strided = (features.mT.contiguous().mT, torch.stack([targets, targets], 1)[:, 0], weights)
    for value, wanted in zip(
        gaussian_posterior(*strided, offsets, mean, precision.mT),
        gaussian_posterior(features, targets, weights, offsets, mean, precision),
        strict=True,
    ):
        torch.testing.assert_close(value, wanted)

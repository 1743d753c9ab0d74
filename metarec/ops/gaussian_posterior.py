"""Bayesian linear regression of many tasks at once: posterior, evidence and one-observation updates."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarec.ops import reference
from metarec.ops.features import widened
from metarec.ops.library import register


class GaussianPosterior(NamedTuple):
    """What :func:`gaussian_posterior` gives for ``T`` tasks of rank ``r``."""

    mean: Tensor
    """Posterior mean, ``[T, r]``."""
    cholesky: Tensor
    """Lower Cholesky factor of the posterior precision, ``[T, r, r]``."""
    log_evidence: Tensor
    """Log density of each task's targets under the prior, ``[T]``."""


def gaussian_posterior(
    features: Tensor,
    targets: Tensor,
    precision: Tensor,
    offsets: Tensor,
    prior_mean: Tensor,
    prior_precision: Tensor,
) -> GaussianPosterior:
    r"""Give the exact Gaussian posterior of each task's weights, and the evidence of its observations.

    Task :math:`t` owns the observations ``offsets[t] <= j < offsets[t + 1]``. With weights
    :math:`\theta \sim N(m, P^{-1})` and targets :math:`y_j = f_j^\top \theta + N(0, 1 / w_j)`,

    .. math::
        \Lambda = P + \sum_j w_j f_j f_j^\top, \qquad
        \mu = \Lambda^{-1} \Bigl(P m + \sum_j w_j y_j f_j\Bigr),

        \log p(y) = \tfrac12 \Bigl(\sum_j \log \tfrac{w_j}{2\pi} + \log|P| - \log|\Lambda|
        - \sum_j w_j (y_j - f_j^\top \mu)^2 - (\mu - m)^\top P (\mu - m)\Bigr).

    The last line equals :math:`\log N(y; F m, W^{-1} + F P^{-1} F^\top)`. An observation of precision zero is absent:
    it changes neither posterior nor evidence. A task without observations has its prior, and log evidence zero.

    Parameters
    ----------
    features : Tensor
        Features :math:`f_j` of all observations, ``[n, r]``, float32 or float64 (as all but ``offsets``), or bfloat16
        beside float32.
    targets : Tensor
        Targets :math:`y_j`, ``[n]``.
    precision : Tensor
        Precision :math:`w_j \ge 0` of each observation, ``[n]``.
    offsets : Tensor
        First observation of each task and, last, ``n``: int64, ``[T + 1]``, ascending from 0.
    prior_mean : Tensor
        Prior mean :math:`m`, ``[r]`` for all tasks or ``[T, r]``.
    prior_precision : Tensor
        Prior precision :math:`P`, ``[r, r]`` for all tasks or ``[T, r, r]``. Symmetric: only the lower triangle is
        read, and its gradient is the symmetric one.

    Returns
    -------
    GaussianPosterior
        ``mean [T, r]``, ``cholesky [T, r, r]`` (lower, of :math:`\Lambda`) and ``log_evidence [T]``.

    Raises
    ------
    ValueError
        If shapes, types or offsets do not fit, a precision is negative or not finite, or a precision matrix is not
        positive definite (the message names the task).

    Notes
    -----
    All floating arguments have exact gradients through all three results, once: a second derivative raises. At
    precision zero the gradient leaves out the term :math:`1 / (2 w_j)` of the evidence.

    Of bfloat16 features a copy in float32 is made, which is exact; all else is float32, but for their gradient, which
    is rounded to bfloat16.

    On CUDA an error of the values cannot be raised without waiting for the device: what depends on a wrong precision or
    on a matrix that is not positive definite is NaN, and offsets that do not fit stop the device by a device-side
    assertion.
    """
    features = widened(features, targets)
    _check_matrix("gaussian_posterior", "features", features)
    count, rank = features.shape
    if offsets.dim() != 1 or offsets.dtype != torch.int64 or offsets.size(0) < 1:
        raise ValueError(
            f"gaussian_posterior: offsets must be int64 of shape [T + 1], got {offsets.dtype} {list(offsets.shape)}"
        )
    tasks = offsets.size(0) - 1
    _check_shape("gaussian_posterior", "targets", targets, [(count,)], features)
    _check_shape("gaussian_posterior", "precision", precision, [(count,)], features)
    _check_shape("gaussian_posterior", "prior_mean", prior_mean, [(rank,), (tasks, rank)], features)
    _check_shape(
        "gaussian_posterior",
        "prior_precision",
        prior_precision,
        [(rank, rank), (tasks, rank, rank)],
        features,
    )
    return GaussianPosterior(*_posterior(features, targets, precision, offsets, prior_mean, prior_precision))


def gaussian_update(
    mean: Tensor, cholesky: Tensor, features: Tensor, targets: Tensor, precision: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Add one observation to each task's posterior, or take one away, in :math:`O(r^2)`.

    .. math::
        \Lambda' = \Lambda + w f f^\top, \qquad \mu' = \mu + w (y - f^\top \mu) \, \Lambda'^{-1} f.

    The result equals, up to rounding, the posterior of all the observations at once. A negative precision takes an
    observation of that precision away again; precision zero changes nothing.

    Parameters
    ----------
    mean : Tensor
        Posterior mean :math:`\mu` of each task, ``[T, r]``, float32 or float64 (as all).
    cholesky : Tensor
        Lower Cholesky factor of the posterior precision :math:`\Lambda`, ``[T, r, r]``.
    features, targets, precision : Tensor
        The observation of each task: :math:`f` ``[T, r]``, :math:`y` ``[T]`` and :math:`w` ``[T]``. Features may be
        bfloat16 beside float32: a copy in float32 is made.

    Returns
    -------
    tuple of Tensor
        The new ``mean [T, r]`` and ``cholesky [T, r, r]``. They carry no gradient.

    Raises
    ------
    ValueError
        If shapes or types do not fit, a precision is not finite, or a posterior precision would no longer be positive
        definite (the message names the task).

    Notes
    -----
    On CUDA an error of the values cannot be raised without waiting for the device: the mean of that task is NaN.
    """
    features = widened(features, mean)
    _check_matrix("gaussian_update", "mean", mean)
    tasks, rank = mean.shape
    _check_shape("gaussian_update", "cholesky", cholesky, [(tasks, rank, rank)], mean)
    _check_shape("gaussian_update", "features", features, [(tasks, rank)], mean)
    _check_shape("gaussian_update", "targets", targets, [(tasks,)], mean)
    _check_shape("gaussian_update", "precision", precision, [(tasks,)], mean)
    with torch.no_grad():
        updated: tuple[Tensor, Tensor] = _update(mean, cholesky, features, targets, precision)
    return updated


def _check_matrix(op: str, name: str, value: Tensor) -> None:
    if value.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{op}: {name} must be float32 or float64, got {value.dtype}")
    if value.dim() != 2:
        raise ValueError(f"{op}: {name} must have two dimensions, got shape {list(value.shape)}")


def _check_shape(op: str, name: str, value: Tensor, shapes: list[tuple[int, ...]], like: Tensor) -> None:
    if value.dtype != like.dtype or value.device != like.device:
        raise ValueError(
            f"{op}: {name} must be {like.dtype} on {like.device}, got {value.dtype} on {value.device}"
        )
    if value.shape not in shapes:
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"{op}: {name} must have shape {expected}, got {list(value.shape)}")


def _fake_posterior(features: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    tasks, rank = offsets.size(0) - 1, features.size(1)
    return features.new_empty(tasks, rank), features.new_empty(tasks, rank, rank), features.new_empty(tasks)


def _fake_backward(
    features: Tensor, targets: Tensor, precision: Tensor, prior_mean: Tensor, prior_precision: Tensor
) -> tuple[Tensor, ...]:
    like = (features, targets, precision, prior_mean, prior_precision)
    return tuple(features.new_empty(tensor.shape) for tensor in like)


def _fake_update(mean: Tensor, cholesky: Tensor) -> tuple[Tensor, Tensor]:
    return mean.new_empty(mean.shape), mean.new_empty(cholesky.shape)


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    mean, cholesky, _ = output
    ctx.save_for_backward(*inputs, mean, cholesky)


def _backward_posterior(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    features, targets, precision, prior_mean, prior_precision = _backward(*grads, *ctx.saved_tensors)
    return features, targets, precision, None, prior_mean, prior_precision


def _no_second_derivative(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
    raise RuntimeError("gaussian_posterior can be differentiated once only")


_posterior = register(
    reference.gaussian_posterior,
    fake=_fake_posterior,
    backward=_backward_posterior,
    setup_context=_save_for_backward,
)
_backward = register(
    reference.gaussian_posterior_backward, fake=_fake_backward, backward=_no_second_derivative
)
_update = register(reference.gaussian_update, fake=_fake_update)

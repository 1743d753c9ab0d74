"""`gaussian_posterior`, its gradient and `gaussian_update` by torch's batched Cholesky factorisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metarec.ops.reference.indices import check_offsets, segments


def _check_precision(what: str, precision: Tensor, wrong: Tensor, expected: str) -> None:
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(f"{what} must be {expected}, got {float(precision[row])} at {row}")


def _cholesky(matrices: Tensor, what: str) -> Tensor:
    factors: Tensor
    factors, info = torch.linalg.cholesky_ex(matrices)
    if info.any():
        task = f" of task {int(info.reshape(-1).nonzero()[0])}" if matrices.dim() == 3 else ""
        raise ValueError(f"{what}{task} is not positive definite")
    return factors


def _symmetric(lower: Tensor) -> Tensor:
    return lower.tril() + lower.tril(-1).mT


def gaussian_posterior(
    features: Tensor,
    targets: Tensor,
    precision: Tensor,
    offsets: Tensor,
    prior_mean: Tensor,
    prior_precision: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    tasks, rank = offsets.numel() - 1, features.size(1)
    check_offsets("gaussian_posterior: offsets", offsets, features.size(0))
    wrong = ~(precision.isfinite() & (precision >= 0))
    _check_precision("gaussian_posterior: precision", precision, wrong, "finite and not negative")
    scaled = features * precision[:, None]
    prior = _symmetric(prior_precision)
    gram = [scaled[rows].mT @ features[rows] for rows in segments(offsets)]
    shift = [scaled[rows].mT @ targets[rows] for rows in segments(offsets)]
    zeros = features.new_zeros(tasks, rank, rank)
    total = prior + (torch.stack(gram) if gram else zeros)
    cholesky = _cholesky(total, "gaussian_posterior: the posterior precision")
    natural = (prior @ prior_mean[..., None])[..., 0] + (torch.stack(shift) if shift else zeros[:, 0])
    mean = torch.cholesky_solve(natural[..., None], cholesky)[..., 0]

    deviation = mean - prior_mean
    counted = precision > 0
    owner = torch.repeat_interleave(torch.arange(tasks, device=offsets.device), offsets.diff())
    residual = targets - (features * mean[owner]).sum(1)
    terms = torch.where(counted, torch.log(torch.where(counted, precision, 1.0)) - math.log(2 * math.pi), 0.0)
    misfit = (deviation[:, None, :] @ prior @ deviation[..., None])[:, 0, 0]
    misfit = misfit.index_add(0, owner, precision * residual.square() - terms)
    log_prior = (
        _cholesky(prior, "gaussian_posterior: the prior precision").diagonal(dim1=-2, dim2=-1).log().sum(-1)
    )
    log_posterior = cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return mean, cholesky, log_prior - log_posterior - misfit / 2


def gaussian_posterior_backward(
    grad_mean: Tensor,
    grad_cholesky: Tensor,
    grad_log_evidence: Tensor,
    features: Tensor,
    targets: Tensor,
    precision: Tensor,
    offsets: Tensor,
    prior_mean: Tensor,
    prior_precision: Tensor,
    mean: Tensor,
    cholesky: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    tasks = offsets.numel() - 1
    owner = torch.repeat_interleave(torch.arange(tasks, device=offsets.device), offsets.diff())
    prior = _symmetric(prior_precision)
    deviation = mean - prior_mean
    evidence = grad_log_evidence[:, None, None]

    # What reaches the posterior precision, through its Cholesky factor, the mean and the evidence.
    inner = (cholesky.mT @ grad_cholesky.tril()).tril()
    inner = inner - inner.diagonal(dim1=-2, dim2=-1).diag_embed() / 2
    inner = inner + inner.mT - evidence * torch.eye(mean.size(1), dtype=mean.dtype, device=mean.device)
    half = torch.linalg.solve_triangular(cholesky.mT, inner, upper=True)
    grad_total = torch.linalg.solve_triangular(cholesky, half, upper=False, left=False) / 2
    solved = torch.cholesky_solve(grad_mean[..., None], cholesky)[..., 0]
    outer = solved[:, :, None] * mean[:, None, :]
    grad_total = grad_total - (outer + outer.mT) / 2

    pushed = features.new_empty(features.shape)
    for task, rows in enumerate(segments(offsets)):
        pushed[rows] = features[rows] @ grad_total[task]
    residual = targets - (features * mean[owner]).sum(1)
    along = (features * solved[owner]).sum(1)
    evidence_of = grad_log_evidence[owner]
    grad_features = precision[:, None] * (
        2 * pushed + targets[:, None] * solved[owner] + (evidence_of * residual)[:, None] * mean[owner]
    )
    grad_targets = precision * (along - evidence_of * residual)
    inverse = torch.where(precision > 0, 1 / torch.where(precision > 0, precision, 1.0), 0.0)
    grad_precision = (
        (features * pushed).sum(1) + targets * along + evidence_of * (inverse - residual.square()) / 2
    )

    spread = deviation[:, :, None] * deviation[:, None, :]
    lift = solved[:, :, None] * prior_mean.expand_as(mean)[:, None, :]
    covariance = torch.cholesky_inverse(torch.linalg.cholesky(prior))
    grad_prior_precision = grad_total + (lift + lift.mT) / 2 + evidence * (covariance - spread) / 2
    grad_prior_mean = (prior @ (solved + grad_log_evidence[:, None] * deviation)[..., None])[..., 0]
    if prior_mean.dim() == 1:
        grad_prior_mean = grad_prior_mean.sum(0)
    if prior_precision.dim() == 2:
        grad_prior_precision = grad_prior_precision.sum(0)
    return grad_features, grad_targets, grad_precision, grad_prior_mean, grad_prior_precision


def gaussian_update(
    mean: Tensor, cholesky: Tensor, features: Tensor, targets: Tensor, precision: Tensor
) -> tuple[Tensor, Tensor]:
    _check_precision("gaussian_update: precision", precision, ~precision.isfinite(), "finite")
    total = cholesky @ cholesky.mT + precision[:, None, None] * features[:, :, None] * features[:, None, :]
    updated = _cholesky(total, "gaussian_update: the updated precision")
    residual = targets - (features * mean).sum(1)
    step = torch.cholesky_solve(((precision * residual)[:, None] * features)[..., None], updated)[..., 0]
    return mean + step, updated

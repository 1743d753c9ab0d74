"""What says whether draws are to be trusted: effective numbers, tails of weights, and chains that agree."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def effective_draws(log_weight: Tensor) -> Tensor:
    """``1 / Σ w²`` of normalised weights, float [T].

    Parameters
    ----------
    log_weight : float [T, s]
        Logs of weights that sum to 1.
    """
    return (-torch.logsumexp(2 * log_weight, 1)).exp()


def pareto_k(log_weight: Tensor) -> Tensor:
    """The shape k̂ of the generalised Pareto law that the largest weights follow, float64 [T].

    With k̂ above ``min(1 − 1/log₁₀ s, 0.7)`` more of them than s are needed. It is −∞ where the largest weights are
    alike, and ∞ where a few are all that there is.

    Parameters
    ----------
    log_weight : float [T, s]
        Logs of the weights, up to a constant.

    References
    ----------
    Vehtari, Simpson, Gelman, Yao, Gabry 2024. Pareto smoothed importance sampling, sections 2.4 and 3.2.
    """
    size = log_weight.shape[1]
    tail = min(math.ceil(0.2 * size), math.ceil(3 * math.sqrt(size)), size - 1)
    largest = log_weight.double().topk(tail + 1, dim=1).values.flip(1)
    weight = (largest - largest[:, -1:]).exp()
    return generalised_pareto_shape(weight[:, 1:] - weight[:, :1])


def generalised_pareto_shape(excess: Tensor) -> Tensor:
    """The shape of the generalised Pareto law of rising `excess` (float64 [T, n]), drawn a little towards ½.

    References
    ----------
    Zhang, Stephens 2009. A new and efficient estimation method for the generalized Pareto distribution. Vehtari et al.
    2024, appendix C: the ½, worth ten observations.
    """
    count = excess.shape[1]
    grid = 30 + int(math.sqrt(count))
    place = torch.arange(1, grid + 1, dtype=excess.dtype, device=excess.device)
    quartile, largest = excess[:, int(count / 4 + 0.5) - 1, None], excess[:, -1:]
    rate = 1 / largest + (1 - (grid / (place - 0.5)).sqrt()) / (3 * quartile)
    shape = torch.log1p(-rate.unsqueeze(2) * excess.unsqueeze(1)).mean(2)
    likelihood = count * ((-rate / shape).log() - shape - 1)
    rate = (likelihood.softmax(1) * rate).sum(1, keepdim=True)
    shape = torch.log1p(-rate * excess).mean(1)
    shape = (count * shape + 10 * 0.5) / (count + 10)
    shape = torch.where(quartile.squeeze(1) > 0, shape, torch.inf)
    return torch.where(largest.squeeze(1) > 0, shape, -torch.inf)


def split_r_hat(chains: Tensor) -> Tensor:
    """How far chains are from having met, float [T]: 1 where they have; the worst of the coordinates.

    ``√(((n − 1)/n W + B/n) / W)`` for the halves of the chains, n states each, with W the mean of their variances and B
    n times the variance of their means.

    Parameters
    ----------
    chains : float [n, T, c, r]
        States of c chains for each task.

    References
    ----------
    Gelman et al. 2013. Bayesian Data Analysis, third edition, section 11.4.
    """
    half = chains.shape[0] // 2
    halves = torch.cat([chains[:half], chains[-half:]], 2)
    mean = halves.mean(0)
    within = (halves - mean).square().sum(0).mean(1) / (half - 1)
    apart = mean - mean.mean(1, keepdim=True)
    between = apart.square().sum(1) / (mean.shape[1] - 1)
    return (((half - 1) / half) + between / within).sqrt().amax(1)

"""Native ops: each one a function with shape checks, gradients where they make sense, and a reference in torch."""

from metarec.ops.cosine_scores import cosine_scores
from metarec.ops.cosine_topk import PreparedItems, cosine_topk, prepare_items
from metarec.ops.gaussian_posterior import GaussianPosterior, gaussian_posterior, gaussian_update

__all__ = [
    "GaussianPosterior",
    "PreparedItems",
    "cosine_scores",
    "cosine_topk",
    "gaussian_posterior",
    "gaussian_update",
    "prepare_items",
]

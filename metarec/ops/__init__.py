"""Native ops: each one a function with shape checks, gradients where they make sense, and a reference in torch."""

from metarec.ops.cosine_scores import cosine_scores
from metarec.ops.cosine_sgd_epoch_ import cosine_sgd_epoch_
from metarec.ops.cosine_topk import PreparedItems, cosine_topk, prepare_items
from metarec.ops.embedding_update_ import RowOptimizer, embedding_state, embedding_update_
from metarec.ops.gaussian_posterior import GaussianPosterior, gaussian_posterior, gaussian_update

__all__ = [
    "GaussianPosterior",
    "PreparedItems",
    "RowOptimizer",
    "cosine_scores",
    "cosine_sgd_epoch_",
    "cosine_topk",
    "embedding_state",
    "embedding_update_",
    "gaussian_posterior",
    "gaussian_update",
    "prepare_items",
]

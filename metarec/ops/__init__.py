"""Native ops: each one a function with shape checks, gradients where they make sense, and a reference in torch."""

from metarec.ops.cosine_scores import cosine_scores
from metarec.ops.cosine_sgd_epoch_ import cosine_sgd_epoch_
from metarec.ops.cosine_topk import PreparedItems, cosine_topk, prepare_items
from metarec.ops.embedding_update_ import RowOptimizer, embedding_state, embedding_update_
from metarec.ops.gaussian_posterior import GaussianPosterior, gaussian_posterior, gaussian_update
from metarec.ops.inner_loop import (
    InnerHead,
    InnerLoopState,
    InnerSteps,
    inner_loop,
    inner_loop_effects,
    inner_loop_predict,
    inner_loop_state,
)

__all__ = [
    "GaussianPosterior",
    "InnerHead",
    "InnerLoopState",
    "InnerSteps",
    "PreparedItems",
    "RowOptimizer",
    "cosine_scores",
    "cosine_sgd_epoch_",
    "cosine_topk",
    "embedding_state",
    "embedding_update_",
    "gaussian_posterior",
    "gaussian_update",
    "inner_loop",
    "inner_loop_effects",
    "inner_loop_predict",
    "inner_loop_state",
    "prepare_items",
]

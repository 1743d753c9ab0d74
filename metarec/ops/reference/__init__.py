"""The native ops in plain torch: the definition that every kernel is checked against.

Each function has the name and the arguments of the op that it defines. They are also the kernels of last resort:
of a build without a C++ compiler, and of devices that have no kernel of their own. The forward functions are
differentiable by torch itself, which the tests use to check the hand-derived gradients.
"""

from metarec.ops.reference.cosine_scores import (
    NORM_EPSILON,
    arithmetic_type,
    cosine_scores,
    cosine_scores_gradient,
    cosine_scores_row_gradient,
)
from metarec.ops.reference.cosine_sgd_epoch_ import cosine_sgd_epoch_, sgd_rounds
from metarec.ops.reference.cosine_topk import CODE_GROUP, cosine_topk, cosine_topk_prepare
from metarec.ops.reference.embedding_update_ import embedding_update_
from metarec.ops.reference.gaussian_posterior import (
    gaussian_posterior,
    gaussian_posterior_backward,
    gaussian_update,
)
from metarec.ops.reference.inner_loop import (
    inner_loop,
    inner_loop_backward,
    inner_loop_effects,
    inner_loop_predict,
    inner_loop_state,
)
from metarec.ops.reference.random import round_stochastically, row_noise

__all__ = [
    "CODE_GROUP",
    "NORM_EPSILON",
    "arithmetic_type",
    "cosine_scores",
    "cosine_scores_gradient",
    "cosine_scores_row_gradient",
    "cosine_sgd_epoch_",
    "cosine_topk",
    "cosine_topk_prepare",
    "embedding_update_",
    "gaussian_posterior",
    "gaussian_posterior_backward",
    "gaussian_update",
    "inner_loop",
    "inner_loop_backward",
    "inner_loop_effects",
    "inner_loop_predict",
    "inner_loop_state",
    "round_stochastically",
    "row_noise",
    "sgd_rounds",
]

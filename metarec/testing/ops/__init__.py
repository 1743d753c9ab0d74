"""Calls of the native ops with what they must give, on whatever device: tests hold the CPU to them, and GPUs are too.

A module has the samples of the op of its name, by a function ``samples``.
"""

from metarec.testing.ops.sample import Sample

OPS = (
    "cosine_scores",
    "cosine_sgd_epoch_",
    "cosine_topk",
    "embedding_update_",
    "gaussian_posterior",
    "inner_loop",
)

__all__ = ["OPS", "Sample"]

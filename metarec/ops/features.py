"""Features that are stored in fewer bits than is computed in."""

from __future__ import annotations

import torch
from torch import Tensor


def widened(features: Tensor, like: Tensor) -> Tensor:
    """Give a float32 copy of bfloat16 features that go with float32; others as they are."""
    if features.dtype == torch.bfloat16 and like.dtype == torch.float32:
        return features.float()
    return features

"""Embeddings of users and items, by their attributes and by themselves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metarec.data import Features
from metarec.tasks import EntityRows


class EntityEmbedding(nn.Module):
    """Vectors of entities: ``Xᵀ of the attributes W + E[row]``, the second part only for known ones.

    In training W has a penalty of its own, `Training.attribute_l2`.

    Parameters
    ----------
    count, columns : int
        Known entities, and columns of their features.
    size : int
        Numbers in a vector.
    identity : bool, default True
        Whether known entities have a vector of their own beside that of their attributes.
    dropout : float, default 0
        Share of the features that are left out in training.
    """

    def __init__(
        self, count: int, columns: int, size: int, *, identity: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.content = nn.Parameter(torch.randn(columns, size) * 0.1)
        self.own = nn.Parameter(torch.randn(count, size) * 0.01) if identity else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, entities: EntityRows) -> Tensor:
        """float [N, size]."""
        features = entities.features
        values = self.dropout(features.values)
        vectors = Features(features.offsets, features.columns, values, features.width).project(self.content)
        if self.own is None:
            return vectors
        known = (entities.rows >= 0).to(vectors.dtype).unsqueeze(1)
        return vectors + known * self.own.index_select(0, entities.rows.clamp(min=0))

"""Layer 1: interactions and the entities between which they happen."""

from metarec.data.dataset import Dataset, EncoderSpec, Entities, RatingScale, Side, partner_side
from metarec.data.features import Block, Features
from metarec.data.reader import Reader

__all__ = [
    "Block",
    "Dataset",
    "EncoderSpec",
    "Entities",
    "Features",
    "RatingScale",
    "Reader",
    "Side",
    "partner_side",
]

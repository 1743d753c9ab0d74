"""Layer 1: interactions and the entities between which they happen."""

from metarec.data.building import Columns, Policies, Table, build_dataset, infer_scale
from metarec.data.dataset import Dataset, EncoderSpec, Entities, RatingScale, Side, partner_side
from metarec.data.features import Block, Features
from metarec.data.files import (
    Layout,
    read_parquet,
    read_text,
    read_text_interactions,
    typed,
    with_numbers,
)
from metarec.data.reader import Reader

__all__ = [
    "Block",
    "Columns",
    "Dataset",
    "EncoderSpec",
    "Entities",
    "Features",
    "Layout",
    "Policies",
    "RatingScale",
    "Reader",
    "Side",
    "Table",
    "build_dataset",
    "infer_scale",
    "partner_side",
    "read_parquet",
    "read_text",
    "read_text_interactions",
    "typed",
    "with_numbers",
]

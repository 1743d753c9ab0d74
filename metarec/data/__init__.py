"""Layer 1: interactions and the entities between which they happen."""

from metarec.data.building import (
    SIDES,
    Columns,
    Duplicates,
    Outliers,
    Policies,
    Table,
    build_dataset,
    infer_scale,
    upper_quarter,
)
from metarec.data.dataset import Dataset, EncoderSpec, Entities, RatingScale, Side, partner_side
from metarec.data.features import Block, Features
from metarec.data.files import (
    Layout,
    read_header,
    read_parquet,
    read_text,
    read_text_interactions,
    typed,
    with_numbers,
)
from metarec.data.memory import from_frame, from_matrix
from metarec.data.reader import Reader

__all__ = [
    "SIDES",
    "Block",
    "Columns",
    "Dataset",
    "Duplicates",
    "EncoderSpec",
    "Entities",
    "Features",
    "Layout",
    "Outliers",
    "Policies",
    "RatingScale",
    "Reader",
    "Side",
    "Table",
    "build_dataset",
    "from_frame",
    "from_matrix",
    "infer_scale",
    "partner_side",
    "read_header",
    "read_parquet",
    "read_text",
    "read_text_interactions",
    "typed",
    "upper_quarter",
    "with_numbers",
]

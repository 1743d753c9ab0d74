"""Layer 2: from raw attributes to feature matrices."""

from metarec.features.encoder import Encoder, as_numbers, as_strings, codes_of, one_per_value
from metarec.features.encoding import EntityEncoder, SideEncoders, encode, fit_encoders

__all__ = [
    "Encoder",
    "EntityEncoder",
    "SideEncoders",
    "as_numbers",
    "as_strings",
    "codes_of",
    "encode",
    "fit_encoders",
    "one_per_value",
]

"""Layer 2: from raw attributes to feature matrices."""

from metarec.features.encoder import Encoder, as_numbers, as_strings
from metarec.features.encoding import EntityEncoder, SideEncoders, encode, fit_encoders

__all__ = ["Encoder", "EntityEncoder", "SideEncoders", "as_numbers", "as_strings", "encode", "fit_encoders"]

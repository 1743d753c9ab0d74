"""From raw attributes to feature matrices: which encoder for which attribute, fitted, applied, and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import polars as pl

from metarec.data import Block, Dataset, EncoderSpec, Entities, Features, Side
from metarec.errors import DataError, unknown_name
from metarec.features.encoder import Encoder
from metarec.pluginmanager import plugin_manager


@dataclass(frozen=True)
class EntityEncoder:
    """Makes the features of one side's entities.

    Parameters
    ----------
    encoders : mapping of attribute to fitted Encoder
        In the order of the feature columns.
    """

    encoders: Mapping[str, Encoder]

    @property
    def width(self) -> int:
        """Number of feature columns."""
        return sum(encoder.width for encoder in self.encoders.values())

    def transform(self, attributes: pl.DataFrame) -> Features:
        """Encode any entities, known or new.

        Parameters
        ----------
        attributes : DataFrame [N rows]
            Raw attributes; one that has no column here is missing for all.

        Returns
        -------
        Features [N, width]
            One block of columns per attribute.

        Raises
        ------
        DataError
            A column that is no attribute (with the nearest right name), or a value of the wrong type.
        """
        for name in attributes.columns:
            if name not in self.encoders:
                raise DataError(unknown_name("attribute", name, self.encoders))
        if not self.encoders:
            return Features.empty(attributes.height)
        return Features.concatenate([self._block(name, attributes) for name in self.encoders])

    def _block(self, name: str, attributes: pl.DataFrame) -> Features:
        missing = pl.Series(name, [None], dtype=pl.Null).new_from_index(0, attributes.height)
        encoded = self.encoders[name].transform(attributes.get_column(name, default=missing))
        return replace(encoded, blocks=(Block(name, 0, encoded.width),))

    def table(self) -> list[dict[str, Any]]:
        """All that was fitted, as JSON values: one object ``{attribute, encoder, table}`` per attribute, in order."""
        return [
            {"attribute": name, "encoder": encoder.name, "table": dict(encoder.table())}
            for name, encoder in self.encoders.items()
        ]

    @classmethod
    def from_table(cls, table: list[dict[str, Any]]) -> Self:
        """The fitted encoders that `table` describes.

        Raises
        ------
        ConfigError
            An encoder that no plugin registers.
        """
        registry = plugin_manager().encoders
        return cls({row["attribute"]: registry[row["encoder"]].from_table(row["table"]) for row in table})


@dataclass(frozen=True)
class SideEncoders:
    """The fitted encoders of both sides."""

    user: EntityEncoder
    item: EntityEncoder

    def side(self, side: Side) -> EntityEncoder:
        """The encoders of a side's entities."""
        return self.user if side == "user" else self.item

    def table(self) -> dict[str, Any]:
        """Both sides' tables, as JSON values."""
        return {"user": self.user.table(), "item": self.item.table()}

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Self:
        """The fitted encoders that `table` describes."""
        return cls(EntityEncoder.from_table(table["user"]), EntityEncoder.from_table(table["item"]))


def fit_encoders(train: Dataset) -> SideEncoders:
    """Fit an encoder for every attribute on the training entities.

    The encoder is the one that `Entities.encoders` names. An attribute that is not named there goes by its type:
    strings, categories and booleans are ``categorical``, numbers ``numeric``, lists of fractions and arrays of numbers
    ``vector``, other lists ``multi-categorical``; the display attribute is left out.

    Raises
    ------
    ConfigError
        An unknown encoder or option.
    DataError
        An attribute that does not exist, has a type without an encoder, or holds values that its encoder cannot take.
    """
    return SideEncoders(_fit(train.users, "user"), _fit(train.items, "item"))


def encode(dataset: Dataset, encoders: SideEncoders) -> Dataset:
    """`dataset` with the features of both sides' entities."""
    return replace(
        dataset,
        users=_encode(dataset.users, encoders.user),
        items=_encode(dataset.items, encoders.item),
    )


def _fit(entities: Entities, side: Side) -> EntityEncoder:
    registry = plugin_manager().encoders
    return EntityEncoder(
        {
            name: registry.create(spec.name, **spec.options).fit(entities.attributes[name])
            for name, spec in _specs(entities, side).items()
        }
    )


def _encode(entities: Entities, encoder: EntityEncoder) -> Entities:
    shown_only = [name for name in _shown_only(entities) if name not in encoder.encoders]
    return replace(entities, features=encoder.transform(entities.attributes.drop(shown_only, strict=False)))


def _specs(entities: Entities, side: Side) -> dict[str, EncoderSpec]:
    for name in entities.encoders:
        if name not in entities.attributes.columns:
            raise DataError(unknown_name(f"{side} attribute", name, entities.attributes.columns))
    shown_only = _shown_only(entities)
    return {
        name: entities.encoders.get(name) or _by_type(name, dtype, side)
        for name, dtype in entities.attributes.schema.items()
        if name not in shown_only
    }


def _shown_only(entities: Entities) -> set[str]:
    unnamed = {entities.display} - {None} - set(entities.encoders)
    return unnamed | {name for name, spec in entities.encoders.items() if spec is None}  # type: ignore[return-value]


def _by_type(name: str, dtype: pl.DataType, side: Side) -> EncoderSpec:
    if dtype.is_numeric():
        return EncoderSpec("numeric")
    if isinstance(dtype, pl.List | pl.Array) and dtype.inner.is_numeric():
        is_vector = isinstance(dtype, pl.Array) or dtype.inner.is_float()
        return EncoderSpec("vector" if is_vector else "multi-categorical")
    if isinstance(dtype, pl.List):
        return EncoderSpec("multi-categorical")
    if dtype in (pl.String, pl.Categorical, pl.Enum, pl.Boolean, pl.Null):
        return EncoderSpec("categorical")
    raise DataError(
        f"{side} attribute {name!r} has type {dtype}: no encoder goes by that type, name one for it"
    )

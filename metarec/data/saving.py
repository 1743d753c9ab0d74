"""Data sets as folders: ``manifest.json``, and Parquet files with the interactions, the users and the items."""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
from torch import Tensor

from metarec.data.building import SIDES
from metarec.data.dataset import Dataset, EncoderSpec, Entities, RatingScale
from metarec.errors import DataError
from metarec.sealed import SealedFolder

FOLDER = SealedFolder("metarec-dataset", 1, "data set", DataError)
INTERACTIONS = "interactions.parquet"
IDS = "id"
ATTRIBUTE = "attribute:"
"""Begins the columns of attributes, which may have any name."""


def save_dataset(dataset: Dataset, path: str | Path) -> None:
    """See `Dataset.save`."""
    columns = {"user": dataset.user, "item": dataset.item, "rating": dataset.rating}
    if dataset.time is not None:
        columns["time"] = dataset.time
    frames = {INTERACTIONS: pl.DataFrame({name: column.numpy() for name, column in columns.items()})}
    frames |= {_file(side): _frame(dataset.entities(side)) for side in SIDES}
    values = {
        "name": dataset.name,
        "scale": asdict(dataset.scale),
        "entities": {side: _values(dataset.entities(side)) for side in SIDES},
    }
    try:
        FOLDER.write(Path(path), values, {name: _parquet(frame) for name, frame in frames.items()})
    except TypeError as error:
        raise DataError(f"{path}: an encoder's option cannot be written: {error}") from None


def load_dataset(path: str | Path) -> Dataset:
    """See `Dataset.load`."""
    path = Path(path)
    manifest = FOLDER.read_manifest(path)
    try:
        columns = _tensors(_read(path, INTERACTIONS, manifest))
        return Dataset(
            name=manifest["name"],
            users=_entities(_read(path, _file("user"), manifest), manifest["entities"]["user"]),
            items=_entities(_read(path, _file("item"), manifest), manifest["entities"]["item"]),
            scale=RatingScale(**manifest["scale"]),
            **columns,
        )
    except (KeyError, TypeError, ValueError, pl.exceptions.PolarsError) as error:
        problem = str(error).splitlines()[0]
        raise DataError(f"{path}: is no whole data set: {type(error).__name__}: {problem}") from None


def _file(side: str) -> str:
    return f"{side}s.parquet"


def _frame(entities: Entities) -> pl.DataFrame:
    attributes = entities.attributes
    named = attributes.rename({name: f"{ATTRIBUTE}{name}" for name in attributes.columns})
    return pl.DataFrame([entities.ids.alias(IDS), *named])


def _values(entities: Entities) -> dict[str, Any]:
    encoders = {
        name: None if spec is None else {"name": spec.name, "options": dict(spec.options)}
        for name, spec in entities.encoders.items()
    }
    return {"ids": entities.ids.name, "encoders": encoders, "display": entities.display}


def _entities(frame: pl.DataFrame, values: dict[str, Any]) -> Entities:
    attributes = frame.drop(IDS)
    return Entities(
        ids=frame[IDS].alias(values["ids"]),
        attributes=attributes.rename({name: name.removeprefix(ATTRIBUTE) for name in attributes.columns})
        if attributes.width
        else pl.DataFrame(height=frame.height),
        encoders={
            name: None if spec is None else EncoderSpec(**spec) for name, spec in values["encoders"].items()
        },
        display=values["display"],
    )


def _parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def _read(path: Path, name: str, manifest: dict[str, Any]) -> pl.DataFrame:
    return pl.read_parquet(io.BytesIO(FOLDER.read_file(path, name, manifest)))


def _tensors(frame: pl.DataFrame) -> dict[str, Tensor]:
    return {column.name: column.to_torch() for column in frame}

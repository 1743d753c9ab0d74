"""Saves and loads recommenders: a folder of `manifest.json` and safetensors files that any language can read.

``manifest.json`` says what was fitted and holds its numbers, strings, encoders and rating scale, and the size and
SHA-256 of each tensor file. ``algorithm.safetensors`` holds the tensors that the algorithm learnt, named by their path
in its state. ``users.safetensors`` and ``items.safetensors`` hold the known entities: ids (int64, or text), names
(text), features (CSR) and popularity; a text column is its UTF-8 bytes, one string after another, and int64 offsets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_jsonable_python
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from metarec.data import Block, Features, RatingScale, Side
from metarec.device import usable_device
from metarec.errors import ArtifactError, ConfigError, DataError
from metarec.features import SideEncoders
from metarec.learning import Algorithm
from metarec.learning.algorithm import moved
from metarec.options import first_problem
from metarec.pluginmanager import PluginManager, plugin_manager
from metarec.sealed import SealedFolder
from metarec.serving import Catalogue, Recommender

FOLDER = SealedFolder("metarec-artifact", 1, "artifact", ArtifactError)


class _File(BaseModel):
    bytes: int
    sha256: str


class _Fitted(BaseModel):
    name: str
    plugin: str
    plugin_version: str | None
    options: dict[str, Any]
    state: dict[str, Any]


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: str
    format_version: int
    algorithm: _Fitted
    encoders: dict[str, Any]
    blocks: dict[Side, list[Block]]
    scale: RatingScale
    files: dict[str, _File]


def save(recommender: Recommender, path: str | Path, *, plugins: PluginManager | None = None) -> None:
    """Write a recommender to the folder `path`, whole or not at all; an artifact that is there is replaced.

    Parameters
    ----------
    recommender : Recommender
    path : str or Path
    plugins : PluginManager, optional
        Where the algorithm is registered; default: the program's.

    Raises
    ------
    ArtifactError
        The place cannot be written or holds something else, the algorithm is no registered one, or its state holds
        something that is no tensor, number, string or mapping of them (named).
    """
    path = Path(path)
    check_place(path)
    values, files = _contents(recommender, plugins or plugin_manager())
    try:
        FOLDER.write(path, values, files)
    except TypeError as error:
        raise ArtifactError(f"an option of the algorithm cannot be saved: {error}") from None


def load(
    path: str | Path, *, device: torch.device | str = "cpu", plugins: PluginManager | None = None
) -> Recommender:
    """Read the recommender in the folder `path`; it gives the same numbers as the one that was saved.

    Parameters
    ----------
    path : str or Path
    device : torch.device or str, default "cpu"
        Where it is to work, wherever it was fitted.
    plugins : PluginManager, optional
        Where the algorithm is registered; default: the program's.

    Raises
    ------
    ConfigError
        The device cannot be used here.
    ArtifactError
        The folder is missing, is no artifact or a newer one, a file of it is missing or damaged, or its plugin is
        missing or has an incompatible version.
    """
    path, device = Path(path), usable_device(device)
    values = FOLDER.read_manifest(path)
    manifest = _valid(path, values)
    tensors = {name: load_tensors(FOLDER.read_file(path, name, values)) for name in manifest.files}
    try:
        return Recommender(
            algorithm=_algorithm(
                manifest.algorithm, tensors["algorithm.safetensors"], device, plugins or plugin_manager()
            ),
            encoders=SideEncoders.from_table(manifest.encoders),
            users=_catalogue("user", tensors["users.safetensors"], manifest.blocks["user"]),
            items=_catalogue("item", tensors["items.safetensors"], manifest.blocks["item"]),
            scale=manifest.scale,
            device=device,
        )
    except (ArtifactError, ConfigError, DataError) as error:
        raise ArtifactError(f"{path}: {error}") from None
    except KeyError as error:
        raise ArtifactError(f"{path}: is no whole artifact: {error.args[0]!r} is missing") from None


def _contents(recommender: Recommender, plugins: PluginManager) -> tuple[dict[str, Any], dict[str, bytes]]:
    tensors: dict[str, Tensor] = {}
    state = {name: _node(value, name, tensors) for name, value in recommender.algorithm.state().items()}
    files = {
        "algorithm.safetensors": save_tensors(tensors),
        "users.safetensors": save_tensors(_columns(recommender.users)),
        "items.safetensors": save_tensors(_columns(recommender.items)),
    }
    values = {
        "algorithm": {**_plugin(recommender.algorithm, plugins), "state": state},
        "encoders": recommender.encoders.table(),
        "blocks": {
            c.side: [asdict(b) for b in c.features.blocks] for c in (recommender.users, recommender.items)
        },
        "scale": asdict(recommender.scale),
    }
    return values, files


def _plugin(algorithm: Algorithm, plugins: PluginManager) -> dict[str, Any]:
    name = algorithm.name
    if name not in plugins.algorithms or plugins.algorithms[name] is not type(algorithm):
        raise ArtifactError(
            f"algorithm {name!r} is registered by no plugin: an artifact of it could not be loaded"
        )
    owner = plugins.algorithms.owner(name)
    options = to_jsonable_python(algorithm.options())
    return {"name": name, "plugin": owner, "plugin_version": plugins.version(owner), "options": options}


def _node(value: Any, where: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What the manifest says of one value of a state; its tensors go to `tensors` under their path."""
    if isinstance(value, Tensor) and value.layout is torch.strided:
        tensors[where] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": where}
    if isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return {"value": value}
    if isinstance(value, Mapping) and all(isinstance(key, str) and "/" not in key for key in value):
        return {"mapping": {key: _node(part, f"{where}/{key}", tensors) for key, part in value.items()}}
    found = repr(value) if isinstance(value, float) else f"a {type(value).__name__}"
    expected = "a tensor, a finite number, a string or a mapping of them"
    raise ArtifactError(f"algorithm attribute {where!r} is {found}, expected {expected}")


def _value(node: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    if "mapping" in node:
        return {key: _value(part, tensors) for key, part in node["mapping"].items()}
    return tensors[node["tensor"]] if "tensor" in node else node["value"]


def _columns(known: Catalogue) -> dict[str, Tensor]:
    ids = (
        {"ids": torch.tensor(known.ids.to_list())} if known.ids.dtype == pl.Int64 else _text("ids", known.ids)
    )
    return {
        **ids,
        **_text("names", known.names),
        "popularity": known.popularity.contiguous(),
        "features.offsets": known.features.offsets.contiguous(),
        "features.columns": known.features.columns.contiguous(),
        "features.values": known.features.values.contiguous(),
    }


def _catalogue(side: Side, columns: Mapping[str, Tensor], blocks: list[Block]) -> Catalogue:
    ids = pl.Series("ids", columns["ids"].numpy()) if "ids" in columns else _series("ids", columns)
    offsets, entries = columns["features.offsets"], columns["features.columns"]
    width = blocks[-1].stop if blocks else 0
    features = Features(offsets, entries, columns["features.values"], width, tuple(blocks))
    return Catalogue(side, ids, _series("names", columns), features, columns["popularity"])


def _text(name: str, column: pl.Series) -> dict[str, Tensor]:
    lengths = torch.tensor(column.str.len_bytes().to_list(), dtype=torch.int64)
    content = bytearray("".join(column), "utf-8")
    return {
        f"{name}.offsets": torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
        f"{name}.bytes": torch.frombuffer(content, dtype=torch.uint8)
        if content
        else torch.zeros(0, dtype=torch.uint8),
    }


def _series(name: str, columns: Mapping[str, Tensor]) -> pl.Series:
    content = columns[f"{name}.bytes"].numpy().tobytes()
    ends = columns[f"{name}.offsets"].tolist()
    return pl.Series(name, [content[start:stop].decode() for start, stop in pairwise(ends)], dtype=pl.String)


def _algorithm(
    fitted: _Fitted, tensors: Mapping[str, Tensor], device: torch.device, plugins: PluginManager
) -> Algorithm:
    if fitted.name not in plugins.algorithms:
        version = f" {fitted.plugin_version}" if fitted.plugin_version else ""
        raise ArtifactError(
            f"needs the plugin {fitted.plugin!r}{version} for algorithm {fitted.name!r}: "
            "it is not loaded (it may be installed, or named by --plugin)"
        )
    installed = plugins.version(plugins.algorithms.owner(fitted.name))
    if fitted.plugin_version and installed and _line(fitted.plugin_version) != _line(installed):
        raise ArtifactError(
            f"was made by plugin {fitted.plugin!r} {fitted.plugin_version}, {installed} is installed"
        )
    algorithm: Algorithm = plugins.algorithms.create(fitted.name, **fitted.options)
    state = {name: _value(node, tensors) for name, node in fitted.state.items()}
    return algorithm.restore(moved(state, device))


def _line(version: str) -> tuple[str, ...]:
    """The part of a version whose change may break: 2 of 2.3.1, 0.3 of 0.3.1."""
    parts = version.split(".")
    return tuple(parts[:2] if parts[0] == "0" else parts[:1])


def check_place(path: Path) -> None:
    """Make sure that an artifact may be written to `path`: that nothing or another artifact is there.

    Raises
    ------
    ArtifactError
        Something else is there.
    """
    FOLDER.check_place(path)


def _valid(path: Path, values: Mapping[str, Any]) -> _Manifest:
    try:
        return _Manifest.model_validate(values)
    except ValidationError as error:
        raise ArtifactError(f"{path}: {first_problem(error)}") from None

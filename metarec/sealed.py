"""Folders of files with a manifest that seals them: written whole or not at all, and checked when read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarec.atomic import replacing
from metarec.errors import MetarecError

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class SealedFolder:
    """A kind of folder: ``manifest.json``, which holds JSON values and every other file's size and SHA-256, and a seal.

    Parameters
    ----------
    format : str
        What the manifest calls the kind.
    version : int
        The newest version that can be read.
    what : str
        What messages call it, such as ``"artifact"``.
    error : type of MetarecError
        What is raised.
    """

    format: str
    version: int
    what: str
    error: type[MetarecError]

    def write(self, path: Path, values: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """Write a folder; one of the same kind that is there is replaced, anything else is left alone.

        Raises
        ------
        MetarecError
            The place holds something else or cannot be written; nothing is left behind.
        """
        self.check_place(path)
        records = {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in files.items()
        }
        manifest = {"format": self.format, "format_version": self.version, **values, "files": records}
        sealed = json.dumps({**manifest, "seal": _seal(manifest)}, indent=1, ensure_ascii=False)
        try:
            path.absolute().parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as folder:
                folder.mkdir()
                for name, content in files.items():
                    (folder / name).write_bytes(content)
                (folder / MANIFEST).write_text(sealed, encoding="utf-8")
        except OSError as error:
            raise self.error(f"{path}: cannot be written: {error.strerror}") from None

    def check_place(self, path: Path) -> None:
        """Make sure that there is nothing at `path`, or a folder that is empty or of this kind.

        Raises
        ------
        MetarecError
            Something else is there.
        """
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return
        try:
            self._raw_manifest(path)
        except self.error:
            raise self.error(f"{path}: holds something that is no {self.what}: it is left alone") from None

    def read_manifest(self, path: Path) -> dict[str, Any]:
        """What the manifest says, without its seal.

        Raises
        ------
        MetarecError
            The folder is missing, of another kind, newer or damaged.
        """
        values = self._raw_manifest(path)
        version = values.get("format_version")
        if isinstance(version, int) and version > self.version:
            raise self.error(
                f"{path}: has format version {version}, expected at most {self.version}: upgrade metarec"
            )
        if values.pop("seal", None) != _seal(values):
            raise self.error(f"{path / MANIFEST}: is damaged: its contents do not fit its checksum")
        return values

    def read_file(self, path: Path, name: str, manifest: Mapping[str, Any]) -> bytes:
        """One of the files that the manifest names.

        Raises
        ------
        MetarecError
            It is missing or damaged.
        """
        file, expected = path / name, manifest["files"][name]
        try:
            content = file.read_bytes()
        except OSError as error:
            raise self.error(f"{file}: cannot be read: {error.strerror}") from None
        if len(content) != expected["bytes"]:
            raise self.error(f"{file}: is damaged: it has {len(content)} bytes, expected {expected['bytes']}")
        if hashlib.sha256(content).hexdigest() != expected["sha256"]:
            raise self.error(f"{file}: is damaged: its contents do not fit its checksum")
        return content

    def _raw_manifest(self, path: Path) -> dict[str, Any]:
        if not path.is_dir():
            raise self.error(f"{path}: no such folder")
        if not (path / MANIFEST).is_file():
            raise self.error(f"{path}: is no {self.what} of metarec: it has no {MANIFEST}")
        try:
            values = json.loads((path / MANIFEST).read_bytes())
        except (OSError, ValueError) as error:
            raise self.error(f"{path / MANIFEST}: is damaged: {error}") from None
        if not isinstance(values, dict) or values.get("format") != self.format:
            raise self.error(f"{path}: is no {self.what} of metarec: its {MANIFEST} is of something else")
        return values


def _seal(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()

"""Files and folders that come into being whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write a file or a folder to, which takes its place when the block ends.

    Whatever was at `path` stays until then, and for good where the block raises; nothing half-written remains.
    """
    path = path.absolute()
    written = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        yield written
        _flush(written)
        replace(written, path)
    finally:
        _remove(written)


def replace(written: Path, path: Path) -> None:
    """Move a file or a folder to `path`, in place of what is there."""
    if written.is_dir() and path.is_dir():  # the system replaces files and empty folders only
        former = written.with_name(f"{written.name}.former")
        path.rename(former)
        try:
            written.rename(path)
        except OSError:
            former.rename(path)
            raise
        _remove(former)
    else:
        written.replace(path)
    _flush_one(path.parent)


def _flush(path: Path) -> None:
    for part in (*path.rglob("*"), path):
        _flush_one(part)


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

"""The setuptools backend, which asks for torch only where a build needs it and there is none to build against."""

import os
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

from setuptools import build_meta
from setuptools.build_meta import *

TORCH_REQUIREMENT = "torch>=2.13"
TORCH_MINIMUM = (2, 13)

ConfigSettings = dict[str, str | list[str]] | None


class Torch(NamedTuple):
    """A torch to build against."""

    folder: Path
    version: str


def find_torch() -> Torch | None:
    """Give a torch that is recent enough: of this build's environment, or of the one that it installs into.

    A front end that isolates the build hides the packages of the environment that it installs into, not their files.
    Nothing is imported from there: the headers and the libraries are all that a build takes.
    """
    for folder in [*filter(None, sys.path), sysconfig.get_path("purelib")]:
        for metadata in Path(folder).glob("torch-*.dist-info"):
            version = metadata.name.removesuffix(".dist-info").split("-")[1]
            torch = Path(folder) / "torch"
            recent = tuple(int(part) for part in version.split(".")[:2]) >= TORCH_MINIMUM
            if recent and (torch / "include/torch/csrc/stable").is_dir():
                return Torch(torch, version)
    return None


def _torch_requirement() -> list[str]:
    return [] if os.environ.get("METAREC_CPP") == "0" or find_torch() else [TORCH_REQUIREMENT]


def get_requires_for_build_wheel(config_settings: ConfigSettings = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_torch_requirement()]


def get_requires_for_build_editable(config_settings: ConfigSettings = None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *_torch_requirement()]

"""The setuptools backend, which asks for torch only where a build needs it and there is none to build against."""

import os
import sysconfig
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *

TORCH_REQUIREMENT = "torch>=2.13"
TORCH_MINIMUM = (2, 13)


def find_torch() -> Path | None:
    """Give the folder of a torch that is recent enough: of this build's environment, or of the one it installs into.

    A front end that isolates the build hides the packages of the environment that it installs into, not their files.
    Nothing is imported from there: the headers and the libraries are all that a build takes.
    """
    import sys

    folders = [Path(folder) for folder in sys.path if folder]
    for folder in [*folders, Path(sysconfig.get_path("purelib"))]:
        for metadata in folder.glob("torch-*.dist-info"):
            version = tuple(int(part) for part in metadata.name.split("-")[1].split(".")[:2])
            if version >= TORCH_MINIMUM and (folder / "torch/include/torch/csrc/stable").is_dir():
                return folder / "torch"
    return None


def _torch_requirement() -> list[str]:
    return [] if os.environ.get("METAREC_CPP") == "0" or find_torch() else [TORCH_REQUIREMENT]


def get_requires_for_build_wheel(config_settings=None):
    return build_meta.get_requires_for_build_wheel(config_settings) + _torch_requirement()


def get_requires_for_build_editable(config_settings=None):
    return build_meta.get_requires_for_build_editable(config_settings) + _torch_requirement()

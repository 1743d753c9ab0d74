"""How this copy of metarec was built, and where its C++ headers and CMake configuration are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metarec.ops.library import NATIVE


def build_info() -> dict[str, Any]:
    """Give the switches and tools of the build.

    Returns
    -------
    dict
        ``native`` says whether the native kernels are in use, ``cuda`` whether there are CUDA kernels; the rest are
        the switches (``METAREC_CPP``, ``METAREC_CUDA``, ``METAREC_DEBUG``, ``CXX``, ``CUDA_HOME``,
        ``TORCH_CUDA_ARCH_LIST``, ``MAX_JOBS``) and the version of torch that the build was made against.
    """
    record = Path(__file__).with_name("_build.json")
    build: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {"cuda": False}
    return {**build, "native": NATIVE}


def get_include() -> str:
    """Give the folder to add to the include path of a C++ program."""
    return str(_sources() / "include")


def _sources() -> Path:
    package = Path(__file__).parent
    # An installed package holds its C++ sources; in a checkout, and where that is installed editable, they lie beside.
    return package / "csrc" if (package / "csrc").is_dir() else package.parent / "csrc"


cmake_prefix_path = str(_sources() / "cmake")
"""What to put on CMAKE_PREFIX_PATH so that ``find_package(metarec)`` finds the C++ library."""

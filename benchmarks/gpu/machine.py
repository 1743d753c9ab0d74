"""What the program needs and whether it is here, how to get the rest, and what the results were found on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import metarec
from metarec.config import RunConfig
from metarec.errors import MetarecError
from metarec.experiment import Experiment

ROOT = Path(__file__).parents[2]
BUILT = "METAREC_BENCHMARK_BUILT"
"""Set for the program that goes on after a build."""


def missing(device: str) -> str | None:
    """Say in a line what the program lacks to run on a device."""
    try:
        Experiment(RunConfig.of({"device": device}))
    except MetarecError as error:
        return str(error)
    if not metarec.build_info()["native"]:
        return "metarec is built without its native ops: install it again with a C++ compiler, without METAREC_CPP=0"
    return None


def can_build(device: str) -> bool:
    """Whether all that lacks are CUDA kernels, and these can be built here."""
    if torch.device(device).type != "cuda" or not torch.cuda.is_available() or BUILT in os.environ:
        return False
    folder = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=f"{folder}/bin") if folder else shutil.which("nvcc")
    return not metarec.build_info()["cuda"] and nvcc is not None and (ROOT / "setup.py").exists()


def build() -> None:
    """Install metarec again from the sources beside this program, with CUDA kernels, and start the program again.

    Nothing is downloaded.

    Raises
    ------
    SystemExit
        The build failed; it has said why.
    """
    major, minor = torch.cuda.get_device_capability()
    environment = {"TORCH_CUDA_ARCH_LIST": f"{major}.{minor}", **os.environ, "METAREC_CUDA": "1", BUILT: "1"}
    environment.pop("METAREC_CPP", None)
    install = ["-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "-e", str(ROOT)]
    if subprocess.run([sys.executable, *install], env=environment, check=False).returncode:
        raise SystemExit(2)
    os.execve(sys.executable, sys.orig_argv, environment)


def describe(device: str) -> dict[str, Any]:
    """Say what the results were found on."""
    found: dict[str, Any] = {
        "device": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "metarec": metarec.__version__,
        "python": platform.python_version(),
        "build": metarec.build_info(),
    }
    if torch.device(device).type != "cuda":
        return found
    properties = torch.cuda.get_device_properties(torch.device(device))
    return found | {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    shown = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return shown[0] if shown else None

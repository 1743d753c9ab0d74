"""Builds the native kernels; everything else is in pyproject.toml.

Switches, as environment variables: METAREC_CPP=0 leaves the native kernels out; METAREC_CUDA=auto builds the CUDA
kernels where there is nvcc, 0 never, and 1 stops without; METAREC_DEBUG=1 keeps symbols and assertions; CXX, CUDA_HOME,
TORCH_CUDA_ARCH_LIST and MAX_JOBS mean what they mean elsewhere.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError, ExecError

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT / "csrc/python"))
from build_backend import TORCH_REQUIREMENT, find_torch

# The first torch whose stable ABI has all that the kernels use. It makes every header outside that ABI an error.
TORCH_TARGET_VERSION = "0x020d000000000000"
# Ampere to Blackwell, and a form that later devices compile for themselves.
CUDA_ARCHITECTURES = "8.0;8.6;9.0;10.0;12.0+PTX"


def switch(name: str, default: str, allowed: tuple[str, ...]) -> str:
    value = os.environ.get(name, default)
    if value not in allowed:
        raise SystemExit(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    return value


def configure() -> dict[str, Any]:
    """Read the switches and look for the tools; what is found is printed and travels with the package."""
    cpp = switch("METAREC_CPP", "1", ("0", "1"))
    cuda = switch("METAREC_CUDA", "auto", ("auto", "0", "1"))
    debug = switch("METAREC_DEBUG", "0", ("0", "1"))
    compiler = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    compiler = shutil.which(compiler.split()[0])
    if cpp == "1" and compiler is None:
        print("WARNING: no C++ compiler: metarec is built without its native kernels", file=sys.stderr)
    elif cpp == "1" and TORCH is None and BUILDS:
        raise SystemExit(f"no {TORCH_REQUIREMENT} to build against: install it, or set METAREC_CPP=0")
    native = cpp == "1" and compiler is not None
    toolkit = find_cuda() if native and cuda != "0" else None
    if cuda == "1" and toolkit is None:
        raise SystemExit(
            f"METAREC_CUDA=1, but {'there is no nvcc on PATH or in CUDA_HOME' if native else 'METAREC_CPP=0'}"
        )
    if native and cuda == "auto" and toolkit is None and BUILDS:
        print("no nvcc: metarec is built for the CPU alone", file=sys.stderr)
    return {
        "native": native,
        "cuda": toolkit is not None,
        "METAREC_CPP": cpp,
        "METAREC_CUDA": cuda,
        "METAREC_DEBUG": debug,
        "MAX_JOBS": int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1),
        "CXX": compiler,
        "CUDA_HOME": str(toolkit) if toolkit else os.environ.get("CUDA_HOME"),
        "TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST")
        or (default_architectures(toolkit) if toolkit else None),
        "torch": TORCH.version if TORCH else None,
    }


def find_cuda() -> Path | None:
    """Give the folder of a CUDA toolkit that has a compiler."""
    folder = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=f"{folder}/bin") if folder else shutil.which("nvcc")
    if nvcc is None:
        return None
    # What is found may only start the compiler; it says itself where the toolkit is.
    shown = subprocess.run(
        [nvcc, "-v", "-dryrun", "x.cu"], capture_output=True, text=True, check=False
    ).stderr
    top = re.search(r"^#\$ TOP=(.+)$", shown, re.MULTILINE)
    return Path(top[1].strip()).resolve() if top else Path(nvcc).resolve().parents[1]


def default_architectures(toolkit: Path) -> str:
    """Give those of our architectures that this nvcc knows; the last has the form for later devices."""
    listed = subprocess.run(
        [toolkit / "bin/nvcc", "--list-gpu-code"], capture_output=True, text=True, check=False
    ).stdout
    codes = re.findall(r"^sm_(\d+)$", listed, re.MULTILINE)
    wanted = CUDA_ARCHITECTURES.removesuffix("+PTX").split(";")
    known = [version for version in wanted if version.replace(".", "") in codes]
    if not known or known == wanted:
        return CUDA_ARCHITECTURES
    if BUILDS:
        unknown = ", ".join(version for version in wanted if version not in known)
        print(f"this nvcc does not know {unknown}: metarec is built for {', '.join(known)}", file=sys.stderr)
    return ";".join(known) + "+PTX"


def architecture_flags(architectures: str) -> list[str]:
    """Give nvcc's flags for a list such as ``8.0;9.0+PTX``."""
    flags = []
    for name in architectures.replace(";", " ").split():
        version = re.fullmatch(r"(\d+)\.(\d+[af]?)(\+PTX)?", name)
        if version is None:
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST must hold versions such as 9.0 or 12.0+PTX, got {name!r}")
        number = version[1] + version[2]
        codes = [f"sm_{number}", *([f"compute_{number}"] if version[3] else [])]
        flags += [f"-gencode=arch=compute_{number},code={code}" for code in codes]
    return flags


class BuildNative(build_ext):
    """Compiles the sources in parallel, and says how to go on without them where that fails."""

    def compile_cuda(self) -> list[str]:
        """Compile the kernels, and give the objects."""
        sources = sorted(Path("csrc/ops/cuda").glob("*.cu"))
        folder = Path(self.build_temp) / "cuda"
        folder.mkdir(parents=True, exist_ok=True)
        command = [f"{BUILD['CUDA_HOME']}/bin/nvcc", "-c", "-std=c++20", "-O3", "-Icsrc/include"]
        command += ["-Xcompiler=-fPIC,-fvisibility=hidden,-Wall", f"-ccbin={BUILD['CXX']}"]
        command += ["-G"] if BUILD["METAREC_DEBUG"] == "1" else []
        command += architecture_flags(BUILD["TORCH_CUDA_ARCH_LIST"])

        def compile_one(source: Path) -> str:
            target = folder / f"{source.stem}.o"
            self.spawn([*command, str(source), "-o", str(target)])
            return str(target)

        with ThreadPoolExecutor(BUILD["MAX_JOBS"]) as pool:
            return list(pool.map(compile_one, sources))

    def build_extensions(self) -> None:
        compile_serially = self.compiler.compile

        def compile_in_parallel(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(BUILD["MAX_JOBS"]) as pool:
                compiled = pool.map(lambda source: compile_serially([source], **options), sources)
                return [path for paths in compiled for path in paths]

        self.compiler.compile = compile_in_parallel
        if BUILD["cuda"]:
            try:
                self.extensions[0].extra_objects = self.compile_cuda()
            except ExecError as error:
                raise SystemExit(
                    f"{error}\nThe CUDA kernels of metarec did not compile (see above). They need nvcc 12 or newer; "
                    "METAREC_CUDA=0 installs metarec without them."
                ) from error
        try:
            super().build_extensions()
        except CompileError as error:
            raise SystemExit(
                f"{error}\nThe native kernels of metarec did not compile (see above). They need a C++20 compiler; "
                "METAREC_CPP=0 installs metarec without them."
            ) from error


class BuildPython(build_py):
    """Adds the record of the build that :func:`metarec.build_info` shows."""

    def run(self) -> None:
        super().run()
        package = ROOT / "metarec" if self.editable_mode else Path(self.build_lib) / "metarec"
        (package / "_build.json").write_text(json.dumps(BUILD, indent=2) + "\n")
        if self.editable_mode and not BUILD["native"]:
            for stale in package.glob("_C*.so"):
                stale.unlink()


def native_extension(torch: Path) -> Extension:
    sources = sorted(ROOT.glob("csrc/core/*.cpp")) + sorted(ROOT.glob("csrc/ops/**/*.cpp"))
    headers = [*ROOT.glob("csrc/**/*.h"), *torch.glob("version.py")]
    library_dirs, libraries = [str(torch / "lib")], ["torch_cpu"]
    if BUILD["cuda"]:
        headers += [*ROOT.glob("csrc/ops/cuda/*.cu*")]
        library_dirs += [f"{BUILD['CUDA_HOME']}/lib64", f"{BUILD['CUDA_HOME']}/lib"]
        libraries += ["cudart_static", "rt", "pthread", "dl"]
    else:
        sources = [path for path in sources if path.parent.name != "cuda"]
    debug = BUILD["METAREC_DEBUG"] == "1"
    return Extension(
        "metarec._C",
        [str(path.relative_to(ROOT)) for path in [*sources, ROOT / "csrc/python/module.cpp"]],
        depends=[str(path) for path in headers],
        include_dirs=["csrc/include"],
        library_dirs=library_dirs,
        libraries=libraries,
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION), ("Py_LIMITED_API", "0x030b0000")],
        # ISO mode would forbid to fuse a product and a sum, which is what the kernels are made of.
        extra_compile_args=["-std=c++20", "-ffp-contract=fast", "-fvisibility=hidden", "-Wall", "-Wextra"]
        + (["-O0", "-g", "-UNDEBUG", "-D_GLIBCXX_ASSERTIONS"] if debug else ["-O3", "-g0"])
        + ["-isystem", str(torch / "include")],
        py_limited_api=True,
        language="c++",
    )


# Not so where a front end only asks what the build needs: torch, for one.
BUILDS = bool({"bdist_wheel", "build_ext", "editable_wheel", "install", "develop", "build"} & set(sys.argv))
TORCH = find_torch()
BUILD = configure()
if BUILDS:
    print("metarec build:", ", ".join(f"{key}={value}" for key, value in BUILD.items()), file=sys.stderr)

plugins = ["metarec.plugins", *(f"metarec.plugins.{name}" for name in find_packages("plugins"))]
setup(
    packages=[*find_packages(include=["metarec", "metarec.*"]), *plugins, "metarec.csrc"],
    package_dir={"metarec.plugins": "plugins", "metarec.csrc": "csrc"},
    package_data={
        "": ["*.html", "*.css", "*.json", "py.typed"],
        "metarec.plugins": ["**/*.parquet", "**/*.md", "**/*.json", "**/*.html", "**/*.css"],
        "metarec.csrc": ["CMakeLists.txt", "cmake/*", "include/metarec/*.h", "core/*"],
    },
    include_package_data=False,
    ext_modules=[native_extension(TORCH.folder)] if TORCH and BUILD["native"] else [],
    cmdclass={"build_ext": BuildNative, "build_py": BuildPython},
)

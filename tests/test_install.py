"""What the sdist and the wheel hold, and what an installation of each kind does."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NVCC = shutil.which("nvcc")

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not in a source tree")


def run(*command: str | Path, succeeds: bool = True, **environment: str) -> str:
    """Run a command with no switch of the build but those given, and give what it prints."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("METAREC_")}
    done = subprocess.run(
        [str(part) for part in command],
        env=inherited | environment,
        cwd=Path(sys.prefix).anchor,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == succeeds, done.stdout
    return done.stdout


def pip(python: Path, *command: str | Path, **options) -> str:
    return run(python, "-m", "pip", "--disable-pip-version-check", "-v", *command, **options)


def environment(folder: Path) -> Path:
    """Make a virtual environment that sees what this one has installed but metarec, and installs into itself."""
    venv.create(folder, symlinks=True)
    python, shared = folder / "bin/python", folder / "shared"
    shared.mkdir()
    for path in map(Path, reversed(sys.path)):
        for entry in path.iterdir() if path.name.endswith("-packages") else ():
            if not entry.name.startswith(("metarec", "__editable__")):
                (shared / entry.name).unlink(missing_ok=True)
                (shared / entry.name).symlink_to(entry)
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (packages / "shared.pth").write_text(f"{shared}\n")
    return python


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the source tree without what builds have left in it."""
    ignored = shutil.ignore_patterns(
        "*.so", "*.egg-info", "_build.json", "__pycache__", ".*", "build", "dist"
    )
    folder = tmp_path_factory.mktemp("checkout") / "metarec"
    return shutil.copytree(ROOT, folder, ignore=ignored)


@pytest.fixture(scope="module")
def sdist(checkout) -> Path:
    backend = f"import os, sys; os.chdir({str(checkout)!r}); sys.path.insert(0, 'csrc/python')"
    run(sys.executable, "-c", f"{backend}; import build_backend; build_backend.build_sdist('dist')")
    (archive,) = (checkout / "dist").glob("metarec-*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = ("wheel", "--no-deps", "--no-build-isolation", "-w", folder, sdist)
    pip(Path(sys.executable), *command, TORCH_CUDA_ARCH_LIST="9.0+PTX")
    (archive,) = folder.glob("metarec-*.whl")
    return archive


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The Python of an environment with the wheel in it."""
    python = environment(tmp_path_factory.mktemp("installed"))
    pip(python, "install", "--no-deps", wheel)
    return python


def sources(*patterns: str) -> set[str]:
    return {str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)}


def test_the_sdist_holds_all_that_a_build_needs(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert sources("csrc/**/*.*", "plugins/**/*.py", "plugins/**/*.parquet", "metarec/**/*.py") <= names
    assert {"LICENSE", "setup.py", "pyproject.toml", "metarec/py.typed"} <= names
    assert "metarec/_build.json" not in names


def test_the_wheel_holds_the_package_the_plugins_and_the_cpp_library(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    library = sources("csrc/CMakeLists.txt", "csrc/cmake/*", "csrc/core/*", "csrc/include/metarec/*")
    data = sources("plugins/**/*.parquet", "plugins/**/SOURCE.md")
    assert data and library
    assert {f"metarec/{name}" for name in library | data | sources("plugins/**/*.py")} <= names
    assert sources("metarec/**/*.py") <= names
    assert {"metarec/_C.abi3.so", "metarec/_build.json", "metarec/py.typed"} <= names
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"metarec"}
    assert not any(name.startswith("metarec/csrc/ops") for name in names)


def test_an_installation_uses_its_native_kernels_and_says_how_it_was_built(installed):
    program = (
        "import json, metarec, torch; from metarec.ops import cosine_topk;"
        "print(json.dumps([metarec.build_info(), metarec.__file__, metarec.get_include(),"
        "cosine_topk(torch.eye(3), torch.eye(3), 1)[1].tolist(),"
        "torch._C._dispatch_has_kernel_for_dispatch_key('metarec::cosine_scores', 'CUDA')]))"
    )
    build, module, include, rows, on_cuda = json.loads(run(installed, "-W", "error", "-c", program))
    assert build["native"] is True and build["cuda"] is on_cuda is (NVCC is not None)
    assert {name: build[name] for name in ("METAREC_CPP", "METAREC_CUDA", "METAREC_DEBUG")} == {
        "METAREC_CPP": "1",
        "METAREC_CUDA": "auto",
        "METAREC_DEBUG": "0",
    }
    assert {"CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS", "CXX", "torch"} <= build.keys()
    assert Path(module).is_relative_to(installed.parents[1])
    assert (Path(include) / "metarec/cosine_topk.h").is_file()
    assert rows == [[0], [1], [2]]
    assert "complete-journey" in run(installed.parent / "metarec", "list", "datasets")


@pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake to build the example with")
def test_the_example_embeds_the_installed_library(installed, tmp_path):
    prefix = run(installed, "-c", "import metarec; print(metarec.cmake_prefix_path)").strip()
    run("cmake", "-S", ROOT / "examples/embed", "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", tmp_path, "--parallel", "2")
    # By hand: the precision is 1 + 4 in both directions, so the mean is (4 * 2, 4 * -1) / 5.
    expected = ["item 4: 1.600000", "item 1: 0.800000", "item 3: -1.600000"]
    assert run(tmp_path / "embed").splitlines() == expected
    linked = run("ldd", tmp_path / "embed")
    assert "torch" not in linked and "python" not in linked


def test_an_editable_installation_without_native_kernels_says_so_once(checkout, tmp_path):
    python = environment(tmp_path)
    printed = pip(python, "install", "--no-deps", "--no-build-isolation", "-e", checkout, METAREC_CPP="0")
    assert "METAREC_CPP=0" in printed
    program = (
        "import metarec, torch; from metarec.ops import cosine_topk, prepare_items; import metarec.plugins.metrics;"
        "print(metarec.__file__, metarec.plugins.__file__, metarec.build_info()['native'], metarec.get_include());"
        "print(*(cosine_topk(torch.eye(2), prepare_items(torch.eye(2)), 1)[1].tolist() for _ in range(2)))"
    )
    *warned, where, rows = run(python, "-c", program).splitlines()
    assert sum("no native kernels" in line for line in warned) == 1
    init = "__init__.py"
    assert where == f"{checkout}/metarec/{init} {checkout}/plugins/{init} False {checkout}/csrc/include"
    assert rows == "[[0], [1]] [[0], [1]]"


def test_an_isolated_build_asks_for_torch_where_there_is_none(checkout):
    backend = (
        f"import os, sys; os.chdir({str(checkout)!r}); sys.path.insert(0, 'csrc/python'); import build_backend;"
        "build_backend.find_torch = lambda: None;"
    )
    for kind in ("wheel", "editable"):
        asked = run(sys.executable, "-c", f"{backend} print(build_backend.get_requires_for_build_{kind}())")
        assert "torch>=2.13" in asked.splitlines()[-1]
    build = f"{backend} build_backend.build_wheel('dist')"
    assert "no torch>=2.13 to build against" in run(sys.executable, "-c", build, succeeds=False)


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        (
            {"METAREC_CUDA": "1", "CUDA_HOME": "/nowhere"},
            "METAREC_CUDA=1, but there is no nvcc on PATH or in CUDA_HOME",
        ),
        ({"METAREC_CUDA": "1", "METAREC_CPP": "0"}, "METAREC_CUDA=1, but METAREC_CPP=0"),
        pytest.param(
            {"TORCH_CUDA_ARCH_LIST": "hopper"},
            "TORCH_CUDA_ARCH_LIST must hold versions such as 9.0 or 12.0+PTX, got 'hopper'",
            marks=pytest.mark.skipif(NVCC is None, reason="no nvcc"),
        ),
        ({"METAREC_CUDA": "yes"}, "METAREC_CUDA must be one of auto, 0, 1, got 'yes'"),
        ({"METAREC_CPP": "off"}, "METAREC_CPP must be one of 0, 1, got 'off'"),
        ({"CXX": "false", "METAREC_CUDA": "0"}, "METAREC_CPP=0 installs metarec without them"),
    ],
)
def test_what_stops_a_build_is_named(checkout, tmp_path, switches, message):
    command = ("wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, checkout)
    assert message in pip(Path(sys.executable), *command, succeeds=False, **switches)
    assert not list(tmp_path.glob("*.whl"))


@pytest.mark.parametrize(
    ("codes", "wanted", "expected"),
    [
        ("sm_80 sm_86 sm_89 sm_90", "", "sm_80 sm_86 sm_90 compute_90"),
        ("sm_86 sm_90 sm_100 sm_120 sm_130", "", "sm_86 sm_90 sm_100 sm_120 compute_120"),
        ("sm_80 sm_90", "12.0", "sm_120"),
    ],
)
def test_what_nvcc_does_not_know_is_not_built_unless_asked_for(checkout, tmp_path, codes, wanted, expected):
    nvcc = tmp_path / "bin/nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(
        '#!/bin/sh\ncase "$*" in\n'
        f"*-dryrun*) echo '#$ TOP={tmp_path}' >&2 ;;\n"
        f"--list-gpu-code) printf '%s\\n' {codes} ;;\n"
        '*) echo "asked for: $*"; exit 1 ;;\nesac\n'
    )
    nvcc.chmod(0o755)
    command = ("wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, checkout)
    switches = {"CUDA_HOME": str(tmp_path), "TORCH_CUDA_ARCH_LIST": wanted}
    printed = pip(Path(sys.executable), *command, succeeds=False, **switches)
    asked = next(line for line in printed.splitlines() if "asked for:" in line)
    assert re.findall(r",code=(\w+)", asked) == expected.split()
    assert ("this nvcc does not know" in printed) == (wanted == "")


def test_without_a_compiler_the_wheel_has_no_kernels_and_the_build_warns(checkout, tmp_path):
    command = ("wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, checkout)
    assert "WARNING: no C++ compiler" in pip(Path(sys.executable), *command, CXX="no-such-compiler")
    (archive,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(archive) as wheel:
        assert not any(name.endswith(".so") for name in wheel.namelist())
        assert json.loads(wheel.read("metarec/_build.json"))["native"] is False

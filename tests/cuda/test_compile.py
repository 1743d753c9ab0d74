"""The CUDA kernels compile without a warning for every architecture, spill nothing, and take what the table says.

The table, resources.json, holds registers and bytes of static shared memory by kernel and architecture, as one version
of nvcc gives them. ``python tests/cuda/test_compile.py`` writes it anew.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = Path(__file__).with_name("resources.json")
ARCHITECTURES = [80, 86, 90, 100, 120]
SOURCES = sorted((ROOT / "csrc/ops/cuda").glob("*.cu"))

CUDA_HOME = os.environ.get("CUDA_HOME")
NVCC = shutil.which("nvcc", path=f"{CUDA_HOME}/bin") if CUDA_HOME else shutil.which("nvcc")

pytestmark = [
    pytest.mark.skipif(NVCC is None, reason="no nvcc"),
    pytest.mark.skipif(shutil.which("c++filt") is None, reason="no c++filt"),
    pytest.mark.skipif(not SOURCES, reason="not in a source tree"),
]

ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<architecture>\d+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<spilled>\d+) bytes spill stores.*?"
    r"Used (?P<registers>\d+) registers(?P<used>[^\n]*)",
    re.DOTALL,
)


def version() -> str:
    shown = subprocess.run([NVCC, "--version"], capture_output=True, text=True, check=True).stdout
    return shown.split("release ")[1].split(",")[0]


def compile_all(source: Path, folder: Path) -> dict[str, dict[str, list[int]]]:
    """Give registers and bytes of static shared memory by kernel and architecture; nothing may be spilled."""
    command = [NVCC, "-c", "-std=c++20", "-O3", f"-I{ROOT / 'csrc/include'}", "-Xcompiler=-Wall"]
    command += ["-Werror=all-warnings", "-Xptxas=-v"]
    command += [f"-gencode=arch=compute_{number},code=sm_{number}" for number in ARCHITECTURES]
    command += [f"-gencode=arch=compute_{ARCHITECTURES[-1]},code=compute_{ARCHITECTURES[-1]}"]
    done = subprocess.run(
        [*command, str(source), "-o", str(folder / f"{source.stem}.o")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    entries = list(ENTRY.finditer(done.stdout))
    mangled = "\n".join(entry["name"] for entry in entries)
    names = subprocess.run(["c++filt"], input=mangled, capture_output=True, text=True, check=True).stdout
    found: dict[str, dict[str, list[int]]] = {}
    for entry, name in zip(entries, names.splitlines(), strict=True):
        short = name.partition("(")[0].removeprefix("void ").replace("metarec::cuda::", "")
        shared = re.search(r"(\d+) bytes smem", entry["used"])
        assert (entry["stack"], entry["spilled"]) == ("0", "0"), (
            f"{short} spills on sm_{entry['architecture']}"
        )
        taken = [int(entry["registers"]), int(shared[1]) if shared else 0]
        found.setdefault(short.replace("metarec::", ""), {})[entry["architecture"]] = taken
    return found


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_kernels_compile_and_take_what_the_table_says(source, tmp_path):
    found, table = compile_all(source, tmp_path), json.loads(TABLE.read_text())
    wanted = table[source.stem]
    assert found.keys() == wanted.keys(), "python tests/cuda/test_compile.py writes the table anew"
    if version() == table["nvcc"]:
        assert found == wanted, "python tests/cuda/test_compile.py writes the table anew"


def write_table() -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = {source.stem: compile_all(source, Path(folder)) for source in SOURCES}
    lines = [f'  "nvcc": "{version()}"']
    for source, kernels in table.items():
        rows = [f"    {json.dumps(name)}: {json.dumps(kernels[name])}" for name in sorted(kernels)]
        lines.append(f"  {json.dumps(source)}: {{\n" + ",\n".join(rows) + "\n  }")
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    write_table()

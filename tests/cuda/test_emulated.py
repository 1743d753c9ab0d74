"""The CUDA kernels, run on the host by the emulator: right, within bounds, and wrong where a bug is planted."""

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
FLAGS = [
    *("-std=c++20", "-O0", "-g1", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Wno-unknown-pragmas"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
]

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"),
    pytest.mark.skipif(not (ROOT / "csrc/testing").exists(), reason="not in a source tree"),
]

PROGRAMS = [
    "simt",
    "rounding",
    "cosine_scores",
    "cosine_sgd_epoch_",
    "cosine_topk",
    "embedding_update_",
    "gaussian_posterior",
    "inner_loop",
]
# The core's sources that a program compares with, compiled without sanitizers: they have tests of their own.
CORE = {"inner_loop": ["inner_loop.cpp", "isa.cpp"]}

# A file of csrc/ops/cuda, a line of it, what stands there instead, and what then is seen.
PLANTED = [
    ("cosine_scores_kernel.cuh", "  __syncthreads();\n", "", "does not hold"),
    (
        "cosine_scores_kernel.cuh",
        "const std::int64_t begin = tile * kCosineTile, end = min(begin + kCosineTile, terms.pairs);",
        "const std::int64_t begin = tile * kCosineTile, end = min(begin + kCosineTile, terms.pairs - 1);",
        "was not written|does not hold",
    ),
    (
        "gaussian_posterior_kernel.cuh",
        "      __syncthreads();\n      // The pivot keeps",
        "      // The pivot keeps",
        "does not hold",
    ),
    (
        "gaussian_posterior_kernel.cuh",
        "i < rows; i += kGaussianThreads) matrix[i * stride + k] *= inverse;",
        "i < rows - 1; i += kGaussianThreads) matrix[i * stride + k] *= inverse;",
        "does not hold",
    ),
    (
        "gaussian_posterior_kernel.cuh",
        "const int tile = rows_at_once(tasks);",
        "const int tile = kRows;",
        "rank 400 takes",
    ),
    (
        "gaussian_posterior_kernel.cuh",
        "    __syncthreads();\n    // S = tril",
        "    // S = tril",
        "gradient of the features",
    ),
    (
        "gaussian_posterior_kernel.cuh",
        "for (int i = thread; i < below; i += kGaussianThreads)",
        "for (int i = thread; i < below - 1; i += kGaussianThreads)",
        "gradient of the features",
    ),
    (
        "gaussian_posterior_kernel.cuh",
        "    __syncwarp();\n    if (lane == 0) factor[k",
        "    if (lane == 0) factor[k",
        "update of rank",
    ),
    (
        "gaussian_posterior_kernel.cuh",
        "i = k + 1 + lane; i < rank; i += kWarp) {\n      const Real before",
        "i = k + 1 + lane; i < rank - 1; i += kWarp) {\n      const Real before",
        "update of rank",
    ),
    # What no barrier keeps apart: lists are chosen from while others still add to them.
    (
        "cosine_topk_kernel.cuh",
        "    __syncthreads();\n    choose_where_full(",
        "    choose_where_full(",
        "not all threads of block",
    ),
    ("cosine_topk_kernel.cuh", "at < stop; at += kWarp", "at + 1 < stop; at += kWarp", "does not hold"),
    (
        "embedding_update__kernel.cuh",
        "  __syncwarp(group.mask);\n  if (group.lane == 0) rule.sums[row] = total;",
        "  if (group.lane == 0) rule.sums[row] = total;",
        "does not hold",
    ),
    (
        "embedding_update__kernel.cuh",
        "run_end(updates.rows, begin, min(begin + kUpdateChunk, updates.count));",
        "run_end(updates.rows, begin, min(begin + kUpdateChunk - 1, updates.count));",
        "does not hold",
    ),
    (
        "embedding_update__kernel.cuh",
        "static_cast<std::uint64_t>(row)) {}",
        "static_cast<std::uint64_t>(row + 1)) {}",
        "is_rounded",
    ),
    # Sums of gradients in 16 bits.
    (
        "embedding_update__kernel.cuh",
        "total.values[w] += load(pack.values[w]);",
        "total.values[w] = load(store<Stored>(total.values[w] + load(pack.values[w])));",
        "is_rounded",
    ),
    (
        "cosine_sgd_epoch__kernel.cuh",
        "    __syncwarp();\n    const StepSlope",
        "    const StepSlope",
        "does not hold",
    ),
    ("cosine_sgd_epoch__kernel.cuh", "shares = own >= left;", "shares = own > left;", "does not hold"),
    # The noise of 16 bits: of the other side, and of one step for all that follow.
    (
        "cosine_sgd_epoch__kernel.cuh",
        "right_noise(seed, sgd_step_stream(block, place, kItemStream))",
        "right_noise(seed, sgd_step_stream(block, place, kUserStream))",
        "does not hold",
    ),
    ("cosine_sgd_epoch__kernel.cuh", "place = at - begin + own;", "place = own;", "does not hold"),
    # What holds only where swaps are followed back in their order, which lists do not keep.
    ("cosine_sgd_epoch__kernel.cuh", "nearest = min(nearest, swap);", "nearest = swap;", "was not written"),
    (
        "inner_loop_kernel.cuh",
        "        __syncthreads();\n        const bool last",
        "        const bool last",
        "predictions: value",
    ),
    (
        "inner_loop_kernel.cuh",
        "depth(i) < terms && across(i) < width",
        "depth(i) + 1 < terms && across(i) < width",
        "case 1 in float: predictions",
    ),
    (
        "inner_loop_kernel.cuh",
        "        __syncthreads();\n        through_activation(l - 1, product.to",
        "        through_activation(l - 1, product.to",
        "predictions: value",
    ),
    (
        "inner_loop_kernel.cuh",
        "next_bar[offset + i] = own - back * pushed;",
        "next_bar[offset + i] = own + back * pushed;",
        "case 1 in float: second-order gradient",
    ),
]


def compiled(*command: str | Path) -> None:
    done = subprocess.run([COMPILER, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


@functools.cache
def core_objects(program: str) -> list[Path]:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    objects = []
    for source in CORE.get(program, []):
        objects.append(folder / f"{source}.o")
        compiled(
            "-std=c++20", f"-I{ROOT / 'csrc/include'}", "-c", ROOT / "csrc/core" / source, "-o", objects[-1]
        )
    return objects


def build(program: str, csrc: Path, folder: Path) -> Path:
    """Build a test program over the kernels of a folder."""
    includes = [f"-I{csrc}", f"-I{csrc / 'include'}", f"-I{ROOT / 'tests'}"]
    source, built = Path(__file__).with_name(f"{program}.cpp"), folder / program
    compiled(*FLAGS, *includes, source, *core_objects(program), "-o", built)
    return built


def run(*command: str | Path) -> tuple[int, str]:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_kernels_are_right_and_within_bounds(program, tmp_path):
    code, printed = run(build(program, ROOT / "csrc", tmp_path))
    assert code == 0, printed[-4000:]


def test_what_lies_beyond_shared_memory_is_not_read(tmp_path):
    program = build("simt", ROOT / "csrc", tmp_path)
    for within in (7, 15):
        assert run(program, str(within))[0] == 0
    for beyond, seen in ((16, "heap-buffer-overflow"), (-1, "out of bounds for type 'float [8]'")):
        code, printed = run(program, str(beyond))
        assert code != 0 and seen in printed


@pytest.mark.parametrize(("file", "line", "planted", "seen"), PLANTED)
def test_planted_bugs_are_found(file, line, planted, seen, tmp_path):
    csrc = tmp_path / "csrc"
    for part in ("include", "ops/cuda", "testing"):
        shutil.copytree(ROOT / "csrc" / part, csrc / part)
    kernel = csrc / "ops/cuda" / file
    assert kernel.read_text().count(line) == 1
    kernel.write_text(kernel.read_text().replace(line, planted))
    code, printed = run(build(file.removesuffix("_kernel.cuh"), csrc, tmp_path))
    assert code != 0
    assert any(sign in printed for sign in seen.split("|")), printed[-4000:]

"""The C++ library alone: its own tests under sanitizers, and its numbers beside those of Python."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import metarec
from metarec.ops import cosine_topk, gaussian_posterior

PROGRAMS = [
    "gaussian_posterior",
    "cosine_topk",
    "inner_loop",
    "cosine_scores",
    "embedding_update",
    "cosine_sgd_epoch",
]
CMAKE, COMPILER = shutil.which("cmake"), shutil.which(os.environ.get("CXX", "c++"))

pytestmark = [
    pytest.mark.skipif(CMAKE is None, reason="no cmake to build the C++ library with"),
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"),
]


def run(*command: str | Path, **options) -> bytes:
    done = subprocess.run([str(part) for part in command], capture_output=True, check=False, **options)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()[-4000:]
    return done.stdout


def build(folder: Path, *programs: str, flags: str) -> Path:
    """Build programs of this folder as a user of the library would: by ``find_package(metarec)``."""
    options = [f"-DCMAKE_PREFIX_PATH={metarec.cmake_prefix_path}"]
    if flags:  # of a build type, for without one the library is optimised, which takes long under sanitizers
        options += ["-DCMAKE_BUILD_TYPE=Debug", f"-DCMAKE_CXX_FLAGS_DEBUG={flags}"]
    run(CMAKE, "-S", Path(__file__).parent, "-B", folder, *options)
    run(CMAKE, "--build", folder, "--parallel", "2", "--target", *programs)
    return folder


@pytest.fixture(scope="module")
def checked(tmp_path_factory) -> Path:
    flags = "-O0 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all -D_GLIBCXX_ASSERTIONS"
    return build(tmp_path_factory.mktemp("checked"), *PROGRAMS, flags=flags)


@pytest.fixture(scope="module")
def raced(tmp_path_factory) -> Path:
    flags = "-O0 -g1 -fsanitize=thread"
    return build(tmp_path_factory.mktemp("raced"), *PROGRAMS, flags=flags)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("plain"), "same_numbers", flags="")


@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_right_and_within_bounds(checked, program, isa):
    run(checked / program, env={**os.environ, "METAREC_ISA": isa})


@pytest.mark.parametrize("program", PROGRAMS)
def test_threads_do_not_race(raced, program):
    run(raced / program, "threads")


class Problem:
    """Random tasks and items; both sides are to compute the same of them."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.counts, self.rank = random.integers(0, 40, 60), 24
        self.items, self.dim, self.queries, self.k = 5000, 33, 50, 20
        total = self.counts.sum()
        self.offsets = np.concatenate([[0], self.counts.cumsum()])
        self.features = random.normal(size=(total, self.rank)).astype(np.float32)
        self.targets = random.normal(size=total).astype(np.float32)
        self.precision = random.gamma(2, size=total).astype(np.float32)
        self.prior_mean = random.normal(size=self.rank).astype(np.float32)
        root = random.normal(size=(self.rank, 2 * self.rank)) / self.rank
        self.prior_precision = (root @ root.T + np.eye(self.rank)).astype(np.float32)
        self.table = random.normal(size=(self.items, self.dim)).astype(np.float32)
        self.left = random.normal(size=(self.queries, self.dim)).astype(np.float32)

    def given(self) -> bytes:
        sizes = [len(self.counts), len(self.targets), self.rank], [self.items, self.dim, self.queries, self.k]
        tasks = (
            self.offsets,
            self.features,
            self.targets,
            self.precision,
            self.prior_mean,
            self.prior_precision,
        )
        values = [np.array(sizes[0]), *tasks, np.array(sizes[1]), self.table, self.left]
        return b"".join(value.tobytes() for value in values)

    def read(self, output: bytes) -> list[np.ndarray]:
        tasks = len(self.counts)
        best = (self.queries, self.k)
        shapes = [(tasks, self.rank), (tasks, self.rank, self.rank), (tasks,), best, best]
        values, at = [], 0
        for shape, dtype in zip(shapes, [np.float32] * 4 + [np.int64], strict=True):
            values.append(np.frombuffer(output, dtype, int(np.prod(shape)), at).reshape(shape))
            at += values[-1].nbytes
        assert at == len(output)
        return values

    def in_python(self) -> list[np.ndarray]:
        given = (
            self.features,
            self.targets,
            self.precision,
            self.offsets,
            self.prior_mean,
            self.prior_precision,
        )
        posterior = gaussian_posterior(*map(torch.from_numpy, given))
        best = cosine_topk(torch.from_numpy(self.left), torch.from_numpy(self.table), self.k)
        return [result.numpy() for result in (*posterior, *best)]


@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
def test_the_numbers_are_those_of_python(plain, isa):
    problem = Problem()
    output = run(plain / "same_numbers", input=problem.given(), env={**os.environ, "METAREC_ISA": isa})
    mean, cholesky, evidence, scores, rows = problem.read(output)
    wanted = problem.in_python()
    for value, expected in zip((mean, cholesky, evidence), wanted, strict=False):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    # Scores are made in an order that no instruction set changes.
    np.testing.assert_array_equal(scores, wanted[3])
    np.testing.assert_array_equal(rows, wanted[4])

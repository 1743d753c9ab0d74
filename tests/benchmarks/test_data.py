"""The benchmark of reading, on a small file."""

from __future__ import annotations

import csv
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        # Benchmarks are not installed; last, so that the metarec that is comes before the one beside them.
        patch.setattr(sys, "path", [*sys.path, str(ROOT)])
        yield importlib.import_module("benchmarks.data")


def test_the_generated_file_is_one_of_ratings_that_no_user_gives_twice(
    data: ModuleType, tmp_path: Path
) -> None:
    data.generate(tmp_path / "r.csv", 2000)
    with (tmp_path / "r.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["userId", "movieId", "rating", "timestamp"]
    assert len({(line["userId"], line["movieId"]) for line in lines}) == len(lines) == 2000
    assert {float(line["rating"]) for line in lines} == {step / 2 for step in range(1, 11)}


def test_time_and_memory_are_those_of_the_process_that_reads(data: ModuleType, tmp_path: Path) -> None:
    few, many = tmp_path / "few.csv", tmp_path / "many.csv"
    data.generate(few, 10)
    data.generate(many, 2000)
    ballast = np.ones(1 << 27)  # a GiB that are not the other process's
    seconds, gigabytes = data.apart(data.measure, data.pandas_read_csv, few, many, 2000)
    assert 0 < seconds < 10 and 0.02 < gigabytes < 1 < ballast.nbytes / 1e9
    with pytest.raises(AssertionError):
        data.apart(data.measure, data.pandas_read_csv, few, many, 1999)

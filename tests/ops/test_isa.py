import os
import subprocess
import sys
from pathlib import Path

import pytest

from metarec.ops.library import NATIVE

CHOSEN = (
    "test_equals_reference_in_double or test_gradients_equal or test_updates_in_any_order "
    "or test_equals_brute_force or near_ties or nan_and_infinity or test_equals_autograd_for_each_activation"
)


@pytest.mark.skipif(not NATIVE, reason="no native kernels in this build")
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_lesser_instruction_sets_agree(isa):
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", CHOSEN]
    run = subprocess.run(
        [*command, str(Path(__file__).parent)],
        env={**os.environ, "METAREC_ISA": isa},
        capture_output=True,
        check=False,
        text=True,
    )
    assert run.returncode == 0, run.stdout


def test_the_reference_serves_without_native_kernels():
    command = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-k",
        f"({CHOSEN}) or opcheck",
    ]
    run = subprocess.run(
        [*command, str(Path(__file__).parent)],
        env={**os.environ, "METAREC_CPP": "0"},
        capture_output=True,
        check=False,
        text=True,
    )
    assert run.returncode == 0, run.stdout

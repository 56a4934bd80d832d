"""Samples of the robustness benchmarks: whatever harms a run changes nothing that it learns."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROBUSTNESS = Path(__file__).resolve().parents[2] / "benchmarks" / "robustness"
COMPILES = sys.platform == "linux" and any(map(shutil.which, ("cc", "gcc", "clang")))
SAMPLES = [
    pytest.param("corruptions.py 40", "40 of 40 corruptions ended well", id="corruptions"),
    pytest.param(
        "io_errors.py 20",
        "20 of 20 I/O errors ended well",
        id="io_errors",
        marks=pytest.mark.skipif(not COMPILES, reason="errors are injected by a library in C"),
    ),
    pytest.param("interruptions.py 5", "none ended otherwise", id="signals"),
    pytest.param("interruptions.py 5 --processes 2", "none ended otherwise", id="signals-2"),
    pytest.param("defects.py 3 8 11 18 19 21", "| 3 | no defect |", id="defects"),
    pytest.param("processes.py 3", "3 of 3 ended as they should", id="processes"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "said"), SAMPLES)
def test_a_sample_ends_well(arguments, said):
    """In a process of its own: what it forks must not have threads behind it."""
    script, *options = arguments.split()
    command = [sys.executable, str(ROBUSTNESS / script), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert said in done.stdout.splitlines()[0]

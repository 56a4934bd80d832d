"""Corrupted files never change what a run learns: made anew, passed over, or refused."""

import subprocess
import sys
from pathlib import Path

import pytest

ROBUSTNESS = Path(__file__).resolve().parents[2] / "benchmarks" / "robustness"


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, count, said",
    [("corruptions.py", 40, "40 of 40 corruptions"), ("io_errors.py", 20, "20 of 20 I/O errors")],
)
def test_a_sample_ends_well(script, count, said):
    """In a process of its own: what it forks must not have threads behind it."""
    command = [sys.executable, str(ROBUSTNESS / script), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(said)

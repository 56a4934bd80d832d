"""A run that is killed at any moment and started again ends as one that never was."""

import subprocess
import sys
from pathlib import Path

import pytest

KILLS = Path(__file__).resolve().parents[2] / "benchmarks" / "robustness" / "kills.py"


@pytest.mark.slow
def test_fifty_kills():
    """In a process of its own: what it forks must not have threads behind it."""
    done = subprocess.run(
        [sys.executable, str(KILLS), "50"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("50 kills in ")

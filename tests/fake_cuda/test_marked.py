"""The tests marked gpu, all in one process on the fake device."""

import re
from pathlib import Path

import pytest

from fake_cuda.scenario import ROOT, python

pytestmark = pytest.mark.slow


def test_what_needs_a_gpu_passes(tmp_path):
    others = {*(ROOT / "tests").rglob("test_*.py")} - {*Path(__file__).parent.iterdir()}
    tests = sorted(path for path in others if "pytest.mark.gpu" in path.read_text())
    assert ROOT / "tests/unit/models/test_on_a_gpu.py" in tests  # a whole file is marked there
    configured = ("-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT))
    alone = ("-p", "no:xdist", "-p", "no:cacheprovider", "-m", "gpu")
    said = python(tmp_path, "pytest", *configured, *alone, *map(str, tests))
    assert re.search(r"\d+ passed", said) and "skipped" not in said, said

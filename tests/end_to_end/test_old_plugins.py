"""Plugins written for 0.1 run unchanged, and are told what has a new name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

OLD = Path(__file__).resolve().parents[1] / "fixtures" / "kdcore-alpha-0.1"


@pytest.fixture
def site(tmp_path):
    """The distribution as pip would lay it, without building it."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "kdcore_alpha.py").write_bytes((OLD / "kdcore_alpha.py").read_bytes())
    info = folder / "kdcore_alpha-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kdcore-alpha\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[kdcore]\nalpha = kdcore_alpha\n")
    (info / "RECORD").write_text("")
    return folder


@pytest.mark.slow
def test_a_distribution_of_0_1_runs_unchanged_with_warnings(site, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=":")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = [sys.executable, "-m", "kdcore", "run", str(OLD / "alpha.toml")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = "the plugin 'alpha' (kdcore-alpha 0.1.0) uses an old name: kdcore.LogitsAt is now "
    assert said + "kdcore.LogitsFn" in done.stderr
    (run,) = (tmp_path / "runs").glob("alpha-*")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "loss/hellinger" in line]
    assert trained[-1]["loss"] < trained[0]["loss"]

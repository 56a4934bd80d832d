"""Plugins written for earlier releases run unchanged, and warnings give the new names."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Runs the recipe of a distribution, laid out as pip would: its messages and metrics."""

    def train(name, version):
        source = FIXTURES / f"kdcore-{name}-{version}"
        site = tmp_path / "site"
        info = site / f"kdcore_{name}-{version}.0.dist-info"
        info.mkdir(parents=True)
        module = f"kdcore_{name}.py"
        (site / module).write_bytes((source / module).read_bytes())
        metadata = f"Metadata-Version: 2.1\nName: kdcore-{name}\nVersion: {version}.0\n"
        (info / "METADATA").write_text(metadata)
        (info / "entry_points.txt").write_text(f"[kdcore]\n{name} = kdcore_{name}\n")
        (info / "RECORD").write_text("")
        monkeypatch.setenv("PYTHONPATH", str(site), prepend=":")
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        command = [sys.executable, "-m", "kdcore", "run", str(source / f"{name}.toml")]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (run,) = (tmp_path / "runs").glob(f"{name}-*")
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return done.stderr, [json.loads(line) for line in lines]

    return train


@pytest.mark.slow
def test_a_distribution_of_0_1_runs_unchanged_with_warnings(trained):
    said, records = trained("alpha", "0.1")
    expected = "the plugin 'alpha' (kdcore-alpha 0.1.0) uses an old name: kdcore.LogitsAt is now "
    assert expected + "kdcore.LogitsFn" in said
    losses = [record["loss"] for record in records if "loss/hellinger" in record]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_a_distribution_of_0_2_runs_without_warnings(trained):
    said, records = trained("beta", "0.2")
    assert "old name" not in said
    losses = [record["loss"] for record in records if "loss/per-answer" in record]
    assert losses[-1] < losses[0]
    assert any("eval/worst" in record for record in records)
    assert any(record.get("rollout/length") for record in records)

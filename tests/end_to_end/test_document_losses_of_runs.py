"""A run keeps what each evaluation measured of each held-out document."""

import json
from pathlib import Path

import pytest
from whole_runs import run

from kdcore.checksums import damage
from kdcore.document_losses import DOCUMENTS, read_document_losses
from kdcore.plugin.manager import PluginManager

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def lines(folder):
    read = map(json.loads, Path(folder, "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in read if "eval/nll" in line}


def test_documents_give_the_numbers_of_metrics_jsonl_and_are_checksummed():
    (folder,) = run(PluginManager(off=["panel"]))
    measured = lines(folder)
    assert sorted(measured) == [0, 2, 4]
    for step, line in measured.items():
        found = read_document_losses(folder, step)
        assert len(found) > 1
        mean = float(found.nll.sum(dtype=float)) / int(found.tokens.sum())
        assert mean == pytest.approx(line["eval/nll"], rel=1e-6)
    assert len({read_document_losses(folder, step).rows for step in measured}) == 1
    assert damage(folder / DOCUMENTS) is None
    path = folder / DOCUMENTS / "step-4.safetensors"
    path.write_bytes(path.read_bytes()[::-1])
    assert "step-4.safetensors was changed" in damage(folder / DOCUMENTS)


def test_a_disk_that_takes_them_no_more_ends_no_run(monkeypatch, caplog):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kdcore.document_losses.sync", full)
    (folder,) = run(PluginManager(off=["panel"]))
    assert sorted(lines(folder)) == [0, 2, 4] and (folder / "final").is_dir()
    assert not (folder / DOCUMENTS / "step-4.safetensors").exists()
    said = [record.message for record in caplog.records if "losses of documents" in record.message]
    assert len(said) == 3 and "No space left on device" in said[0]

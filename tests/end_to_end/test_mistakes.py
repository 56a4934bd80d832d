"""The mistakes of benchmarks/robustness/mistakes.py: a sentence and what to type."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from kdcore import RunError
from kdcore.models.loading import load_model, load_tokenizer


@pytest.fixture
def model(tmp_path):
    tiny.save(tmp_path / "model", tokenizer=tiny.byte_tokenizer())
    return tmp_path / "model"


def loaded(folder, device="cpu"):
    return load_model(str(folder), dtype=torch.float32, device=torch.device(device), attention=None)


def test_a_folder_without_a_tokenizer(model):
    for path in model.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(RunError, match="it has no tokenizer that can be read"):
        load_tokenizer(str(model))


def test_a_folder_without_a_config(model):
    (model / "config.json").unlink()
    with pytest.raises(RunError, match=r"it has no config\.json with a model_type"):
        loaded(model)


@pytest.mark.slow
def test_a_model_that_writes_no_text(model):
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "vit"}))
    with pytest.raises(RunError, match="no causal language model"):
        loaded(model)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there(model):
    with pytest.raises(RunError, match="has no CUDA device; leave `device` out"):
        loaded(model, "cuda:1")


def test_weights_that_are_empty(model):
    (model / "model.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=r"cannot load .* the folder is there, but"):
        loaded(model)


@pytest.mark.slow
def test_all_fifty_say_what_to_type():
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "robustness" / "mistakes.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [line for line in rows if "**wrong**" in line] == []
    assert done.returncode == 0 and len(rows) == 50, done.stderr[-2000:]

"""Layers that stay in the CPU's memory: the same answers, and nothing of them on the device."""

from types import SimpleNamespace

import given
import pytest
import tiny
import torch
from adapted import adapted

from kdcore import LanguageModel, RunError, load_model
from kdcore.models.adapters import bytes_on_device, offload_layers

pytestmark = pytest.mark.slow

KINDS = tiny.KINDS


def read(model, batch):
    found = LanguageModel(model.eval().requires_grad_(False))
    with torch.no_grad():
        return found.logits(found.states(batch)), found


@pytest.fixture
def batch():
    return tiny.batch(tiny.documents((7, 5), given.VOCABULARY), [[(0, 0, 7), (1, 0, 5)]])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [lambda model: model, adapted], ids=["plain", "adapted"])
def test_the_same_answers(kind, change, batch):
    expected, _ = read(change(given.model(kind)), batch)
    model = change(given.model(kind))
    offload_layers(model, tiny.CPU)
    found, read_by = read(model, batch)
    assert torch.equal(found, expected)
    assert read_by.device == tiny.CPU and read_by.weight is not None


@pytest.mark.parametrize("kind", KINDS)
def test_no_layer_lies_on_the_device_before_or_after_it_ran(kind, batch):
    model = given.model(kind)
    layers = model.transformer.h if kind == "gpt2" else model.model.layers
    offload_layers(model, tiny.CPU)
    for _ in range(2):
        assert {parameter.device.type for parameter in layers.parameters()} == {"meta"}
        outside = {id(p) for p in model.parameters()} - {id(p) for p in layers.parameters()}
        assert all(p.device == tiny.CPU for p in model.parameters() if id(p) in outside)
        read(model, batch)


def test_tied_weights_stay_tied():
    model = given.model("gpt2")
    offload_layers(model, tiny.CPU)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_what_the_device_holds():
    model = given.model(tie_word_embeddings=False)
    outside = 2 * given.VOCABULARY * 16 + 16  # embeddings, head and the last norm
    assert bytes_on_device(model) == 4 * (outside + 16 * 48)


def test_it_has_no_use_on_a_cpu(tmp_path):
    tiny.save(tmp_path)
    with pytest.raises(RunError, match="leave offload out"):
        load_model(str(tmp_path), dtype=torch.float32, offload=True)


def test_a_gpu_is_where_the_layers_run(tmp_path, monkeypatch):
    """Loaded into the CPU's memory, then offloaded for the device."""
    from kdcore.models import adapters

    seen = SimpleNamespace()
    monkeypatch.setattr(adapters, "offload_layers", lambda *given: setattr(seen, "given", given))
    tiny.save(tmp_path)
    model = load_model(str(tmp_path), dtype=torch.float32, device="cuda", offload=True)
    assert seen.given == (model, torch.device("cuda"))
    assert model.device == tiny.CPU

"""Layers that stay in the CPU's memory: the same answers, and nothing of them on the device."""

from types import SimpleNamespace

import given
import pytest
import tiny
import torch
from adapted import adapted

from kdcore import LanguageModel, RunError, load_model
from kdcore.models.offload import bytes_on_device, offload_layers

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
    home, seen = [memories(layer) for layer in layers], []
    assert all(len(each) == 1 for each in home)  # one copy brings all of it
    for layer in layers:
        layer.register_forward_pre_hook(
            lambda layer, _: seen.append([memories(each) for each in layers])
        )
    for _ in range(2):
        seen.clear()
        read(model, batch)
        assert [memories(layer) for layer in layers] == home
        for running, found in enumerate(seen):
            at_home = [one == other for one, other in zip(found, home, strict=True)]
            assert at_home == [number != running % len(layers) for number in range(len(layers))]


def memories(layer):
    return {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}


def test_the_next_layer_comes_while_one_runs(batch):
    model = given.model(num_hidden_layers=5)
    offload_layers(model, tiny.CPU)
    (arrive,) = model.model.layers[0]._forward_pre_hooks.values()
    offloaded, seen = arrive.func.__self__, []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda *_: seen.append([*offloaded._here]))
    read(model, batch)
    assert seen[-5:] == [[0, 1], [2, 1], [2, 3], [4, 3], [4, 3]]


def test_a_layer_that_fails_is_at_home_again(batch):
    model = given.model()
    offload_layers(model, tiny.CPU)
    layer, home = model.model.layers[0], memories(model.model.layers[0])
    failing = layer.mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        read(model, batch)
    assert memories(layer) == home
    failing.remove()
    assert torch.equal(read(model, batch)[0], read(given.model(), batch)[0])


def test_tied_weights_stay_tied():
    model = given.model("gpt2")
    offload_layers(model, tiny.CPU)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_what_the_device_holds():
    model = given.model(tie_word_embeddings=False)
    outside = 2 * given.VOCABULARY * 16 + 16  # embeddings, head and the last norm
    layer = sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    assert bytes_on_device(model) == 4 * (outside + 2 * layer)


def test_it_has_no_use_on_a_cpu(tmp_path):
    tiny.save(tmp_path)
    with pytest.raises(RunError, match="leave offload out"):
        load_model(str(tmp_path), dtype=torch.float32, offload=True)


def test_a_gpu_is_where_the_layers_run(tmp_path, monkeypatch):
    """Loaded into the CPU's memory, then offloaded for the device."""
    from kdcore.models import offload

    seen = SimpleNamespace()
    monkeypatch.setattr(offload, "offload_layers", lambda *given: setattr(seen, "given", given))
    tiny.save(tmp_path)
    model = load_model(str(tmp_path), dtype=torch.float32, device="cuda", offload=True)
    assert seen.given == (model, torch.device("cuda"))
    assert model.device == tiny.CPU

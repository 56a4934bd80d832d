"""A pruned student computes what its layers compute, and is an ordinary model when it is saved."""

import given
import pytest
import torch
from kdcore_prune import Prune, kdcore_patches
from transformers import AutoModelForCausalLM

from kdcore import UsageError

IDS = torch.tensor([[1, 5, 3, 2, 7, 9]])


def tiny(kind, layers=5):
    size = {"n_layer": layers} if kind == "gpt2" else {"num_hidden_layers": layers}
    return given.model(kind, **size)


def stack(model):
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize(
    ("options", "kept"),
    [({"keep": 3}, [0, 2, 4]), ({"keep": 1}, [0]), ({"layers": [1, 4]}, [1, 4]), ({"keep": 5}, 5)],
)
def test_the_layers_that_stay_are_those(kind, options, kept):
    whole, pruned = tiny(kind), tiny(kind)
    kept = range(kept) if isinstance(kept, int) else kept
    Prune(**options).apply(pruned)
    assert pruned.config.num_hidden_layers == len(stack(pruned)) == len(kept)
    for layer, index in zip(stack(pruned), kept, strict=True):
        for ours, theirs in zip(layer.parameters(), stack(whole)[index].parameters(), strict=True):
            assert ours.equal(theirs)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_it_is_saved_and_loaded_as_any_model_and_generates_with_a_cache(kind, tmp_path):
    pruned = Prune(layers=[0, 2, 3]).apply(tiny(kind)).eval()
    pruned.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert loaded(IDS).logits.equal(pruned(IDS).logits)
        for model in (loaded, pruned):
            cached = model(IDS[:, :-1], use_cache=True).past_key_values
            last = model(IDS[:, -1:], past_key_values=cached).logits
            torch.testing.assert_close(last[:, -1], model(IDS).logits[:, -1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "either keep or layers"),
        ({"keep": 2, "layers": [0]}, "either keep or layers"),
        ({"layers": [2, 1]}, "ascending"),
        ({"layers": [1, 1]}, "ascending"),
    ],
)
def test_options_that_say_no_layers_are_errors_of_the_recipe(options, said):
    (error,) = Prune(**options).faults(None)
    assert said in error


@pytest.mark.parametrize("options", [{"keep": 6}, {"layers": [0, 5]}, {"layers": [-1, 2]}])
def test_layers_that_are_not_there_are_refused_with_their_number(options):
    with pytest.raises(UsageError, match="has layers 0 to 4"):
        Prune(**options).apply(tiny("llama"))


def test_hook_kdcore_patches():
    assert kdcore_patches() == [Prune]

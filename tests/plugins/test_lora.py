"""The patch `lora`: what it freezes, adds, merges and refuses."""

import json

import given
import pytest
import tiny
import torch
from adapted import adapted
from kdcore_init import Init
from kdcore_lora import Lora, kdcore_patches
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from kdcore import LanguageModel, RunError, UsageError
from kdcore.cli.main import plugin_manager
from kdcore.errors import RecipeError
from kdcore.models.causal_lm import random_ids
from kdcore.recipe.recipe import read_recipe
from kdcore.training.student import patched

pytestmark = pytest.mark.slow

pytest.importorskip("peft")
HALF = torch.bfloat16


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def logits(model):
    with torch.no_grad():
        return model(input_ids=random_ids(model, tiny.CPU), use_cache=False).logits


def test_hook_kdcore_patches():
    assert [patch.name for patch in kdcore_patches()] == ["lora"]


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_only_the_adapter_trains_and_in_float32(kind):
    model = patched(tiny.model(kind, dtype=HALF), [Lora(rank=4)])
    assert trained(model)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        assert parameter.dtype == (torch.float32 if "lora_" in name else HALF), name


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_all_linear_is_every_layer_but_the_head(kind):
    model = Lora(rank=4).apply(tiny.model(kind))
    layers = {name.split(".lora_")[0] for name in trained(model)}
    assert len(layers) == 2 * (4 if kind == "gpt2" else 7)
    assert type(model.get_output_embeddings()) is torch.nn.Linear
    assert LanguageModel(model).weight is model.get_output_embeddings().weight


def test_targets_that_are_named():
    model = Lora(rank=4, targets=["q_proj", "model.layers.1.mlp.up_proj"]).apply(tiny.model())
    layers = {name.split(".lora_")[0].split("model.layers.")[1] for name in trained(model)}
    assert layers == {"0.self_attn.q_proj", "1.self_attn.q_proj", "1.mlp.up_proj"}


def test_an_adapted_head_needs_full_logits():
    model = Lora(rank=4, targets=["lm_head"]).apply(tiny.model())
    assert LanguageModel(model).weight is None


@pytest.mark.parametrize(
    ("options", "factor"), [({}, 2.0), ({"rank": 4}, 2.0), ({"rank": 4, "alpha": 6.0}, 1.5)]
)
def test_alpha_is_twice_the_rank(options, factor):
    layer = Lora(**options).apply(tiny.model()).get_base_model().model.layers[0].self_attn.q_proj
    assert layer.scaling == {"default": factor}


def test_a_fresh_adapter_changes_nothing():
    plain = logits(given.model())
    assert torch.equal(logits(Lora().apply(given.model())), plain)


def test_the_seed_draws_it():
    def matrices(seed):
        model = given.model()
        torch.manual_seed(seed)
        return list(trained(Lora().apply(model)).values())

    one, same, other = matrices(0), matrices(0), matrices(1)
    assert all(map(torch.equal, one, same))
    assert not all(map(torch.equal, one, other))


def test_dropout_of_the_adapter_and_of_nothing_else():
    def differs(**options):
        model = adapted(given.model(), **options).train()
        return not torch.equal(logits(model), logits(model))

    assert differs(dropout=0.5) and not differs()


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_merged_it_is_an_ordinary_model(kind, tied, tmp_path):
    base = given.model(kind, tie_word_embeddings=tied)
    before, config = logits(base), base.config.to_dict()
    model = adapted(base)
    expected = logits(model)
    assert (expected - before).abs().max() > 0.1
    merged = Lora().finish(model)
    assert type(merged) is type(base) and merged.config.to_dict() == config
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded), logits(merged))
    assert not list(tmp_path.glob("adapter*"))


def test_half_weights_are_rounded_once():
    """The float32 sum of weight and adapter, then the nearest value there is."""
    model = adapted(tiny.model(dtype=HALF), scale=1e-3)
    layer = model.get_base_model().model.layers[0].mlp.up_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    exact = layer.base_layer.weight.float() + 2 * b @ a
    merged = Lora().finish(model).model.layers[0].mlp.up_proj.weight
    assert merged.dtype == HALF
    assert torch.equal(merged, exact.to(HALF))


def test_unmerged_it_names_its_base_by_the_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "base")
    model = adapted(AutoModelForCausalLM.from_pretrained("base"), merge=False)
    finished = Lora(merge=False).finish(model)
    assert finished is model
    finished.save_pretrained("adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    assert config["target_modules"] == sorted(config["target_modules"])
    assert "q_proj" in config["target_modules"]
    monkeypatch.chdir("/")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert torch.equal(logits(loaded), logits(model.eval()))


def test_nothing_is_warned_about(recwarn, caplog, tmp_path):
    for kind in tiny.KINDS:
        model = given.model(kind)
        model.name_or_path = "nobody/nothing"
        adapter = adapted(model, merge=False)
        Lora(merge=False).finish(adapter).save_pretrained(tmp_path / kind)
    assert not [str(each.message) for each in recwarn if each.category is not ResourceWarning]
    assert not [each for each in caplog.records if each.levelname == "WARNING"]


# What is refused


def test_a_target_that_is_not_there():
    with pytest.raises(UsageError, match=r"the target 'qproj', and LlamaForCausalLM has no such"):
        Lora(targets=["q_proj", "qproj"]).apply(tiny.model())


def test_a_target_that_is_no_matrix():
    with pytest.raises(UsageError, match='the patch "lora" cannot adapt this model: '):
        Lora(targets=["self_attn"]).apply(tiny.model())


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_one_of_two_tied_matrices_cannot_be_merged(target):
    with pytest.raises(UsageError, match="are one matrix"):
        Lora(targets=[target]).apply(tiny.model(tie_word_embeddings=True))
    Lora(targets=[target]).apply(tiny.model(tie_word_embeddings=False))


def test_an_adapter_to_nothing_that_has_a_name():
    with pytest.raises(UsageError, match="set merge = true"):
        Lora(merge=False).apply(tiny.model())


@pytest.mark.parametrize(
    "options", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": "q_proj"}]
)
def test_options_are_checked(options):
    with pytest.raises(ValidationError):
        Lora(**options)


def test_peft_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(RunError, match=r'pip install "kdcore\[lora\]"'):
        Lora().apply(tiny.model())


RECIPE = """
[student]
model = "m"
patch = [{patches}]
[data]
use = "stories"
[[loss]]
use = "ce"
[train]
lr = 1e-4
steps = 1
"""


def faults(tmp_path, *patches, fresh=False):
    path, text = tmp_path / "mine.toml", RECIPE.replace("{patches}", ", ".join(patches))
    if fresh:
        text = text.replace('model = "m"', 'config = {model_type = "llama"}')
        text += '[tokenizer]\nuse = "bpe"\n'
    path.write_text(text)
    try:
        read_recipe(str(path), plugin_manager([]))
    except RecipeError as error:
        return [fault.message for fault in error.errors]
    return []


ALONE = '{use = "lora", merge = false}'


def test_errors_of_recipes(tmp_path, monkeypatch):
    assert faults(tmp_path, '{use = "lora"}') == faults(tmp_path, ALONE) == []
    assert faults(tmp_path, '{use = "init"}', '{use = "lora"}') == []
    assert faults(tmp_path, ALONE, '{use = "init"}') == []
    [said] = faults(tmp_path, '{use = "init"}', ALONE)
    assert f"without the patch {Init.name!r}" in said
    [said] = faults(tmp_path, '{use = "lora"}', '{use = "lora", rank = 2}')
    assert "twice" in said
    [said] = faults(tmp_path, ALONE, fresh=True)
    assert "a fresh student has no saved base model" in said
    monkeypatch.setattr("kdcore_lora.find_spec", lambda name: None)
    [said] = faults(tmp_path, '{use = "lora"}')
    assert said == 'the patch "lora" needs peft: pip install "kdcore[lora]"'

"""Adapters by folder: told from models, put onto their base, refused where they do not fit."""

import json
import logging
import shutil

import pytest
import tiny
import torch
from adapted import save_adapter
from safetensors.torch import load_file, save_file

from kdcore import (
    LanguageModel,
    RunError,
    load_config,
    load_model,
    load_tokenizer,
    model_fingerprint,
)
from kdcore.api.student import StudentOptions
from kdcore.models.adapters import adapter_base, merged, with_adapter
from kdcore.models.causal_lm import random_ids
from kdcore.training.student import make_student

pytestmark = pytest.mark.slow

pytest.importorskip("peft")


@pytest.fixture
def base(tmp_path):
    tiny.save(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter(base, tmp_path):
    """The adapter's folder, and what its model says."""
    model = save_adapter(load(base), tmp_path / "adapter", base=base)
    return tmp_path / "adapter", logits(model)


def load(name, **options):
    return load_model(str(name), dtype=torch.float32, **options)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=random_ids(model, tiny.CPU), use_cache=False).logits


def test_an_adapter_is_reported_from_a_model(base, adapter, tmp_path):
    folder, _ = adapter
    assert adapter_base(str(folder)) == str(base)
    assert adapter_base(str(base)) is None
    assert adapter_base(str(tmp_path)) is None
    shutil.copy(base / "config.json", folder)  # transformers reads the model here, then
    assert adapter_base(str(folder)) is None


def test_its_folder_is_loaded_as_base_and_adapter(base, adapter):
    folder, expected = adapter
    assert torch.equal(logits(load(folder)), expected)
    assert torch.equal(logits(load(base, adapter=str(folder))), expected)
    assert (logits(load(base)) - expected).abs().max() > 0.1
    assert load_config(str(folder)).to_dict() == load_config(str(base)).to_dict()


def test_its_tokenizer_is_its_own_or_its_bases(base, adapter):
    folder, _ = adapter
    theirs = load_tokenizer(str(base)).get_vocab()
    assert load_tokenizer(str(folder)).get_vocab() == theirs
    tiny.byte_tokenizer(vocabulary=280).save_pretrained(folder)
    assert len(load_tokenizer(str(folder)).get_vocab()) < len(theirs)


def test_half_weights_keep_a_whole_adapter(adapter):
    folder, _ = adapter
    model = load_model(str(folder), dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if "lora_" in name else torch.bfloat16)


def test_fingerprints_are_of_adapter_and_base_and_not_of_places(base, adapter, tmp_path):
    folder, _ = adapter
    print_ = model_fingerprint(str(folder))
    shutil.copytree(base, tmp_path / "moved")
    _rename(folder, str(tmp_path / "moved"))
    assert model_fingerprint(str(folder)) == print_
    alone = model_fingerprint(str(folder), base=False)
    tiny.save(tmp_path / "moved", seed=1)
    assert model_fingerprint(str(folder)) != print_
    assert model_fingerprint(str(folder), base=False) == alone != print_


def _rename(folder, base):
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_a_student_begins_with_the_adapter_merged_and_trains_whole(adapter):
    folder, expected = adapter
    options = StudentOptions(model=str(folder))
    student = make_student(options, None, [], seed=0, device=tiny.CPU)
    assert type(student).__name__ == "LlamaForCausalLM"
    torch.testing.assert_close(logits(student), expected, rtol=1e-4, atol=1e-4)
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert student.name_or_path == ""
    assert merged(student) is student


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["lm_head", "embed_tokens"]},
        {"target_modules": ["lm_head"], "use_dora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6, 7]},
    ],
    ids=["head", "embeddings", "both", "dora", "saved head", "saved embeddings", "tokens"],
)
def test_an_adapter_of_a_tied_head_begins_as_itself_and_is_saved_as_itself(tmp_path, options):
    from peft import LoraConfig, get_peft_model

    tiny.save(tmp_path / "base", tie_word_embeddings=True)
    torch.manual_seed(5)
    model = get_peft_model(
        load(tmp_path / "base"), LoraConfig(task_type="CAUSAL_LM", r=4, **options)
    )
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("lora_", "modules_to_save", "trainable_tokens")):
            torch.nn.init.normal_(parameter, std=0.2)
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    made = StudentOptions(model=str(tmp_path / "adapter"))
    student = make_student(made, None, [], seed=0, device=tiny.CPU)
    torch.testing.assert_close(logits(student), expected, rtol=1e-4, atol=1e-4)
    student.save_pretrained(tmp_path / "final")
    assert torch.equal(logits(load(tmp_path / "final")), logits(student))


def save_tied(folder, **options):
    """A model with tied embeddings, and a fresh adapter of it."""
    from peft import LoraConfig, get_peft_model

    tiny.save(folder / "base", tie_word_embeddings=True)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **options)
    get_peft_model(load(folder / "base"), config).save_pretrained(folder / "adapter")


def test_the_width_of_a_saved_head_is_that_of_its_weights(tmp_path):
    save_tied(tmp_path, modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    made = StudentOptions(model=str(tmp_path / "adapter"))
    student = make_student(made, None, [], seed=0, device=tiny.CPU)
    assert LanguageModel(student).width == student.config.vocab_size


def test_tokens_trained_next_to_a_saved_head_are_refused_as_peft_does(tmp_path):
    save_tied(tmp_path, modules_to_save=["lm_head"], trainable_token_indices=[5])
    with pytest.raises(RunError, match=r"adapter' does not fit .*TrainableTokensLayer"):
        load(tmp_path / "adapter")


def test_a_folder_of_several_adapters_names_them(base, tmp_path):
    for name in ("two", "one"):
        save_adapter(load(base), tmp_path / "several" / name, base=base)
    for loads in (load, load_tokenizer):
        with pytest.raises(RunError, match=r"each in a folder of its own \('one', 'two'\)"):
            loads(str(tmp_path / "several"))


def test_a_merge_that_makes_another_model_is_refused(adapter):
    folder, _ = adapter
    model = load(folder)
    whole = model.merge_and_unload

    def half(**options):
        made = whole(**options)
        torch.nn.init.zeros_(made.lm_head.weight)
        return made

    model.merge_and_unload = half
    with pytest.raises(RunError, match="the merged model gives other outputs"):
        merged(model)


# What is refused


def test_the_wrong_base(adapter, tmp_path):
    folder, _ = adapter
    tiny.save(tmp_path / "wide", hidden_size=64)
    with pytest.raises(RunError) as caught:
        load(tmp_path / "wide", adapter=str(folder))
    assert "does not fit" in str(caught.value) and "\n" not in str(caught.value)
    assert "q_proj.lora_A.weight' is [4, 32], and [4, 64] belongs there" in str(caught.value)
    assert f"it was made for {str(tmp_path / 'base')!r}" in str(caught.value)


@pytest.mark.parametrize("layers, said", [(3, "it lacks 'model.layers.2."), (1, "no place there")])
def test_a_base_with_other_layers(adapter, tmp_path, layers, said):
    folder, _ = adapter
    tiny.save(tmp_path / "deep", num_hidden_layers=layers)
    with pytest.raises(RunError, match="does not fit") as caught:
        load(tmp_path / "deep", adapter=str(folder))
    assert said in str(caught.value)


def test_a_base_of_another_kind(adapter, tmp_path):
    folder, _ = adapter
    tiny.save(tmp_path / "gpt2", "gpt2")
    with pytest.raises(RunError, match=r"does not fit .*: its modules are not there; it was made"):
        load(tmp_path / "gpt2", adapter=str(folder))


def test_another_rank_than_its_config_says(base, adapter):
    folder, _ = adapter
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": 8}))
    with pytest.raises(RunError, match=r"lora_A.weight' is \[4, 32\], and \[8, 32\] belongs there"):
        load(base, adapter=str(folder))


def test_weights_that_would_stay_at_zero(base, adapter):
    folder, _ = adapter
    weights = load_file(folder / "adapter_model.safetensors")
    del weights["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"]
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"it lacks 'model.layers.1.mlp.up_proj.lora_B.weight'"):
        load(base, adapter=str(folder))


def test_torn_weights(base, adapter):
    folder, _ = adapter
    (folder / "adapter_model.safetensors").write_bytes(b"12345678")
    with pytest.raises(RunError, match="cannot load the adapter"):
        load(base, adapter=str(folder))


def test_a_base_that_is_gone(adapter, base):
    folder, _ = adapter
    shutil.rmtree(base)
    with pytest.raises(RunError, match=rf"cannot load '{base}': there is no such folder"):
        load(folder)


def test_an_adapter_that_names_no_base(base, adapter):
    folder, expected = adapter
    _rename(folder, None)
    with pytest.raises(RunError, match="does not name its base model"):
        load(folder)
    assert torch.equal(logits(load(base, adapter=str(folder))), expected)


def test_an_adapter_on_an_adapter(adapter):
    folder, _ = adapter
    with pytest.raises(RunError, match="is an adapter; leave"):
        load(folder, adapter=str(folder))


def test_a_base_of_another_name_is_reported(adapter, base, caplog):
    folder, _ = adapter
    _rename(folder, "Qwen/Qwen2.5-7B")
    with caplog.at_level(logging.WARNING):
        load(base, adapter=str(folder))
    assert "was made for 'Qwen/Qwen2.5-7B' and is applied to" in caplog.text
    caplog.clear()
    _rename(folder, "somebody/base")  # downloaded, likely
    load(base, adapter=str(folder))
    assert not caplog.records


def test_an_adapter_of_the_hub_that_is_a_pickle_is_not_read(base, adapter, monkeypatch):
    import peft

    folder, _ = adapter
    config = peft.PeftConfig.from_pretrained(folder)
    monkeypatch.setattr(peft.PeftConfig, "from_pretrained", lambda name: config)
    monkeypatch.setattr("kdcore.models.adapters.file_on_hub", lambda name, file: None)
    with pytest.raises(RunError, match=r"'org/pickled': it has no adapter_model\.safetensors"):
        with_adapter(load(base), "org/pickled", str(base))

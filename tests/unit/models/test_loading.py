import json
import logging

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from kdcore import RunError, dtype_of, load_model, load_tokenizer, model_fingerprint


def test_a_folder_is_loaded_in_the_type_that_was_asked_for(tmp_path):
    tokenizer = tiny.save(tmp_path, dtype=torch.bfloat16)
    model = load_model(str(tmp_path), dtype=torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert load_tokenizer(str(tmp_path)).get_vocab() == tokenizer.get_vocab()


def test_attention_is_passed_on(tmp_path):
    tiny.save(tmp_path)
    model = load_model(str(tmp_path), dtype=torch.float32, attention="eager")
    assert model.config._attn_implementation == "eager"


def test_home_is_filled_in(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny.save(tmp_path / "model")
    load_model("~/model", dtype=torch.float32)
    assert model_fingerprint("~/model") == model_fingerprint(str(tmp_path / "model"))


@pytest.mark.parametrize(
    "load",
    [
        lambda name, key: load_model(name, dtype=torch.float32, key=key),
        lambda name, key: load_tokenizer(name, key=key),
    ],
)
def test_a_hub_out_of_reach_is_one_sentence(load):
    with pytest.raises(RunError) as caught:
        load("Qwen/Qwen2.5-1.5B", "student.model")
    assert str(caught.value) == (
        "cannot load 'Qwen/Qwen2.5-1.5B': not a folder here and the hub cannot be reached; "
        "download it, or give a local folder with --set student.model=PATH"
    )
    with pytest.raises(RunError, match=r'download it, or give a local folder: model = "PATH"$'):
        load("gpt2", None)


def test_a_model_that_the_hub_has_not(monkeypatch):
    from transformers import AutoTokenizer

    class RepositoryNotFoundError(OSError):
        pass

    def missing(*_, **__):
        raise OSError("nope\nand more") from RepositoryNotFoundError()

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", missing)
    with pytest.raises(RunError, match="the hub has no such model"):
        load_tokenizer("nobody/nothing")


@pytest.mark.parametrize("name", ["./gone", "runs/teacher-1234/final", "/gone", "~/gone"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(name):
    with pytest.raises(RunError, match=f"cannot load '{name}': there is no such folder"):
        load_model(name, dtype=torch.float32)


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(RunError, match="the folder is there, but") as caught:
        load_model(str(tmp_path), dtype=torch.float32)
    assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match="the folder is there, but"):
        load_tokenizer(str(tmp_path))


def test_torn_weights(tmp_path):
    tiny.save(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(RunError, match="the folder is there, but"):
        load_model(str(tmp_path), dtype=torch.float32)


def test_weights_that_would_stay_random_are_refused(tmp_path):
    tiny.save(tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"its files lack 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        load_model(str(tmp_path), dtype=torch.float32)


def test_code_of_a_repository_is_not_run(tmp_path):
    tiny.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    config["model_type"] = "evil"
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(RunError, match="brings code of its own, which is not run"):
        load_model(str(tmp_path), dtype=torch.float32)


def test_quantising_needs_a_gpu(tmp_path):
    tiny.save(tmp_path)
    with pytest.raises(RunError, match='quantise = "4bit" needs a CUDA device'):
        load_model(str(tmp_path), dtype=torch.float32, quantise="4bit")


def test_quantising_needs_its_package(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RunError, match="needs bitsandbytes"):
        load_model(str(tmp_path), dtype=torch.float16, device="cuda", quantise="8bit")


def test_fingerprint_follows_the_weights_not_the_place(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        tiny.save(tmp_path / name, seed=seed)
    a, b, c = (model_fingerprint(str(tmp_path / name)) for name in "abc")
    assert a == b != c


def test_fingerprint_of_a_hub_model_is_its_revision(monkeypatch, tmp_path):
    import transformers.utils.hub

    config = tmp_path / "snapshots" / "abc123" / "config.json"

    def cached_file(name, file, **options):
        return str(config) if file == "config.json" else None

    monkeypatch.setattr(transformers.utils.hub, "cached_file", cached_file)
    assert model_fingerprint("some/model") == "some/model@abc123"


def test_dtypes():
    assert dtype_of("auto", torch.device("cpu")) == torch.float32
    assert dtype_of("bf16", torch.device("cpu")) == torch.bfloat16


def test_nothing_is_warned_about(tmp_path, caplog):
    tiny.save(tmp_path)
    with caplog.at_level(logging.WARNING):
        load_model(str(tmp_path), dtype=torch.float32)
    assert not caplog.messages


def test_no_progress_bar_ends_up_in_a_log(tmp_path, capsys):
    from transformers.utils import logging as hf_logging

    tiny.save(tmp_path)
    capsys.readouterr()
    load_model(str(tmp_path), dtype=torch.float32)
    assert capsys.readouterr().err == "" and hf_logging.is_progress_bar_enabled()

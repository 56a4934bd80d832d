"""Fingerprints are equal where things are, and only there."""

import os

import pytest
import torch
from safetensors.torch import save_file

from kdcore import Data, Loss, component
from kdcore.api.options import as_call, describe, of_options
from kdcore.hashing import folder_hash, tokenizer_hash


@component
class Warm(Loss):
    name = "warm-kl"
    temperature: float = 2.0
    weights: list[float] | None = None


@component
class Lines(Data):
    name = "lines"
    path: str = "x"

    def fingerprint(self):
        return "what was read"


@component
class Wrapped(Data):
    name = "wrapped"
    source: Data
    others: list[Data]
    shares: dict[str, int]


def test_a_component_is_shown_as_a_call():
    assert as_call(Warm()) == "warm_kl(temperature=2.0, weights=None)"
    assert describe(Warm(weights=[0.5, 1.0])) == "warm-kl(weights=[0.5, 1.0])"


def test_options_tell_components_apart():
    assert of_options(Warm()) == of_options(Warm(temperature=2.0)) == Warm().fingerprint()
    assert of_options(Warm()) != of_options(Warm(temperature=3.0))


def test_nested_components_say_themselves_what_they_are():
    nested = Wrapped(source=Lines(), others=[Lines(path="y")], shares={"b": 1, "a": 2})
    assert "source=what was read, others=[what was read], shares={'a': 2, 'b': 1}" in of_options(
        nested
    )
    assert describe(nested).startswith("wrapped(source=lines(), others=[lines(path='y')]")


def test_tokenizers_are_reported_apart_by_what_they_do(byte_tokenizer):
    before = tokenizer_hash(byte_tokenizer)
    byte_tokenizer.pad_token = "<|endoftext|>"
    with_pad = tokenizer_hash(byte_tokenizer)
    byte_tokenizer(["ab", "c"], padding=True, truncation=True, max_length=3)
    assert tokenizer_hash(byte_tokenizer) == with_pad != before
    byte_tokenizer.add_tokens(["<new>"])
    assert tokenizer_hash(byte_tokenizer) != with_pad


def test_a_tokenizer_keeps_its_fingerprint_on_disk(byte_tokenizer, tmp_path):
    from transformers import AutoTokenizer

    byte_tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer_hash(loaded) == tokenizer_hash(byte_tokenizer)


def write_model(folder, changed=0.0, config='{"a": 1, "transformers_version": "5"}'):
    folder.mkdir()
    weight = torch.arange(64_000.0).view(640, 100)
    weight[320, 5] += changed
    save_file({"head": weight, "norm": torch.ones(3)}, folder / "model.safetensors")
    (folder / "config.json").write_text(config)
    return folder


def test_a_folder_is_what_its_weights_and_config_are(tmp_path):
    first, second = write_model(tmp_path / "a"), write_model(tmp_path / "b")
    os.utime(second / "model.safetensors", (0, 0))
    (second / "config.json").write_text('{"transformers_version": "6", "a": 1}')
    (second / "notes.txt").write_text("nothing of the model")
    assert folder_hash(first) == folder_hash(str(second))


@pytest.mark.parametrize("other", [{"changed": 1.0}, {"config": '{"a": 2}'}])
def test_other_weights_or_config_are_another_folder(tmp_path, other):
    assert folder_hash(write_model(tmp_path / "a")) != folder_hash(
        write_model(tmp_path / "b", **other)
    )


def test_a_folder_without_safetensors_is_read_whole(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"1")
    before = folder_hash(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"2")
    assert folder_hash(tmp_path) != before

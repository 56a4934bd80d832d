"""Tokenizers that lack something: a run ends with 1 or 2 and why, or trains as it should."""

import json
import shutil
from pathlib import Path

import pytest
import tiny
from fuzzing import PLAIN, a_world, cases, ended_cleanly, kdcore
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.slow

SPECIAL = ["bos_token", "eos_token", "pad_token", "unk_token"]
TOKENS = [None, "<|end|>", "a", "", "<new>", 7, ["<|end|>"], {"content": "<|end|>"}, "\ud7ff", "é"]
TEMPLATES = ["", "{{", "{{ 1/0 }}", "{% for m in messages %}{{ m.content }}{% endfor %}", 7, None]
CLASSES = ["PreTrainedTokenizerFast", "GPT2Tokenizer", "Nobody", "", 7, None, "LlamaTokenizer"]


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        a_world(folder)
        yield


def ends_well(*changes):
    """Whatever the tokenizer lacks is told; with a good one, the same command trains."""
    shutil.rmtree("out", ignore_errors=True)
    command = ("run", "t.toml", "--out", "out", *changes)
    if ended_cleanly(kdcore(*command), (0, 1, 2)).code:
        shutil.rmtree("odd")
        shutil.copytree("model", "odd")
        again = ended_cleanly(kdcore(*command), (0, 2))
        if again.code:
            assert "--accept" in again.err
            ended_cleanly(kdcore(*command, "--accept", "data,tokenizer"), (0,))
    assert list(Path("out").glob("*/final/model.safetensors"))


configs = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(SPECIAL, st.sampled_from(TOKENS)),
        "chat_template": st.sampled_from(TEMPLATES),
        "tokenizer_class": st.sampled_from(CLASSES),
        "model_max_length": st.sampled_from([0, -1, 1, 10**40, "x", None]),
        "add_bos_token": st.booleans(),
        "padding_side": st.sampled_from(["left", "right", "up"]),
        "extra_special_tokens": st.sampled_from([[], ["a"], {}, 7]),
        "clean_up_tokenization_spaces": st.sampled_from([True, "x"]),
    },
)


@cases(30)
@given(configs, st.sampled_from(["text", "sft"]))
def test_configs_of_tokenizers(changed, use):
    shutil.rmtree("odd", ignore_errors=True)
    shutil.copytree("model", "odd")
    path = Path("odd/tokenizer_config.json")
    config = {**json.loads(path.read_text()), **changed}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    Path("t.toml").write_text(PLAIN.replace('model = "model"', 'model = "odd"'))
    data = "data={use='sft', path='chat.jsonl', validation_share=0.25, template='plain', block=16}"
    ends_well(*(["--set", data] if use == "sft" else []))


@cases(20)
@given(st.data())
def test_files_of_tokenizers(data):
    shutil.rmtree("odd", ignore_errors=True)
    shutil.copytree("model", "odd")
    path = Path("odd", data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json"])))
    written = bytearray(path.read_bytes())
    start = data.draw(st.integers(0, len(written)))
    written[start : start + data.draw(st.sampled_from([0, 1, 9, len(written)]))] = data.draw(
        st.sampled_from([b"", b"{}", b"null", b"[]", b"\xff", b"\0", b'"', b"1e999"])
    )
    path.write_bytes(written)
    Path("t.toml").write_text(PLAIN.replace('model = "model"', 'model = "odd"'))
    ends_well()


@pytest.mark.parametrize("changed", [{"unk_token": ""}, {"model_max_length": "x"}])
def test_what_breaks_when_a_tokenizer_is_used_is_found_when_it_is_loaded(changed):
    shutil.rmtree("odd", ignore_errors=True)
    shutil.copytree("model", "odd")
    path = Path("odd/tokenizer_config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    Path("t.toml").write_text(PLAIN.replace('model = "model"', 'model = "odd"'))
    outcome = ended_cleanly(kdcore("run", "t.toml", "--out", "odd-runs"), (1,))
    assert "cannot load 'odd': the folder is there, but" in outcome.err


@pytest.mark.parametrize("missing", ["pad_token", "eos_token", "both"])
@pytest.mark.parametrize("eos", ["true", "false"])
def test_without_pad_or_eos(missing, eos):
    shutil.rmtree("odd", ignore_errors=True)
    tokenizer = tiny.byte_tokenizer()
    if missing != "pad_token":
        tokenizer.eos_token = None
    if missing == "eos_token":
        tokenizer.pad_token = "a"
    shutil.copytree("model", "odd")
    tokenizer.save_pretrained("odd")
    Path("t.toml").write_text(PLAIN.replace('model = "model"', 'model = "odd"'))
    ends_well("--set", f"data.eos={eos}")

"""Attention within the pieces of packed rows equals attention over each document alone."""

import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, masking_utils

from kdcore import LanguageModel, RunError, generate
from kdcore.data.collate import Collate
from kdcore.models import attention
from kdcore.training.setup import enable_checkpointing

LENGTHS = [(5, 9, 2), (16,), (1, 15), (7,)]
WINDOWED = {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 0}
KINDS = {
    "llama": {},
    "qwen2": {},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "mistral": {"sliding_window": 4},
    "qwen2 with windows": WINDOWED,
}


def model_of(name):
    return tiny.model(name.split()[0], **KINDS[name])


def rows():
    drawn, documents, made = np.random.default_rng(0), iter(range(100)), []
    for lengths in LENGTHS:
        position = np.concatenate([np.arange(n) for n in lengths])
        document = np.repeat([next(documents) for _ in lengths], lengths)
        ids = drawn.integers(0, 64, len(position))
        places = {"document": document, "offset": position, "position": position}
        made.append({"input_ids": ids, **places})
    return made


def batch():
    return Collate(tiny.split_of([np.zeros(9)]), 64, tiny.CPU)(rows())


def whole_rows():
    count = np.arange(16)
    made = [{"input_ids": (7 * count + n) % 64, "document": count * 0 + n} for n in range(3)]
    made = [row | {"offset": count, "position": count} for row in made]
    return Collate(tiny.split_of([np.zeros(16)]), 64, tiny.CPU)(made)


def alone(model, row):
    """States of a row's documents, each run by itself."""
    found = []
    for document in np.unique(row["document"]):
        ids = torch.tensor(row["input_ids"][row["document"] == document])[None]
        found.append(model.base_model(input_ids=ids, use_cache=False)[0][0])
    return torch.cat(found)


@pytest.mark.parametrize("name", KINDS)
def test_each_piece_is_what_it_is_alone(name):
    model = model_of(name)
    assert_exact(model)
    assert model.config._attn_implementation == attention.NAME


HIDDEN = {
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "use_sliding_window": True,
        "layer_types": ["sliding_attention"] * 2,
    },
    "phimoe": {"num_local_experts": 2},
    "doge": {},
    "llama4_text": {
        "num_local_experts": 2,
        "intermediate_size_mlp": 32,
        "no_rope_layers": [1, 1],
        "attention_chunk_size": 12,
        "layer_types": ["chunked_attention"] * 2,
    },
}
"""Models whose masks have a window or parts that their attention is not told of."""


SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
WINDOW = {"sliding_window": 12}  # longer than what a model is tried on, shorter than some pieces


def of_kind(name, **options):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **SIZES, **options)).eval()


@pytest.mark.parametrize("name", HIDDEN)
def test_a_window_that_is_in_the_mask_alone_is_kept(name):
    language_model = assert_exact(of_kind(name, **GROUPED, **WINDOW, **HIDDEN[name]))
    assert not language_model._packs


def test_documents_are_kept_apart_in_models_that_would_mix_them():
    language_model = assert_exact(of_kind("biogpt"))
    assert language_model._packs and not language_model.isolates


def test_positions_that_begin_elsewhere_are_left_to_the_model():
    """RoBERTa's begin behind its padding id."""
    model, made = of_kind("roberta", is_decoder=True, pad_token_id=0), whole_rows()
    ids = made.input_ids
    expected = model(input_ids=ids, use_cache=False).logits
    language_model = LanguageModel(model)
    logits = language_model.logits(language_model.states(made)).view_as(expected)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_a_model_that_sees_what_it_should_predict_is_refused():
    with pytest.raises(RunError, match=r"BertLMHeadModel is not causal.* is_decoder = true"):
        LanguageModel(of_kind("bert"))
    LanguageModel(of_kind("bert", is_decoder=True))


def assert_exact(model):
    """Packed rows are what their documents are alone."""
    expected = [alone(model, row) for row in rows()]
    language_model, made = LanguageModel(model), batch()
    states = language_model.states(made).view(*made.input_ids.shape, -1)
    for n, wanted in enumerate(expected):
        torch.testing.assert_close(states[n, : len(wanted)], wanted, atol=1e-5, rtol=1e-5)
    return language_model


@pytest.mark.parametrize("name", KINDS)
def test_rows_that_are_whole_are_what_transformers_makes_of_them(name):
    made, model = whole_rows(), model_of(name)
    positions = {"position_ids": made.position_ids, "use_cache": False}
    expected = model.base_model(input_ids=made.input_ids, **positions)[0]
    states = LanguageModel(model).states(made).view_as(expected)
    assert torch.equal(states, expected)


def test_whole_rows_are_not_searched_for_pieces(monkeypatch):
    looked = []
    language_model = LanguageModel(tiny.model())
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", looked.append)
    language_model.states(whole_rows())
    assert looked == []


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("adapted", [False, True])
def test_so_is_the_gradient(checkpointing, adapted):
    model = tiny.model()
    if adapted:
        model = get_peft_model(
            model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
        )
    language_model = LanguageModel(model.train())
    if checkpointing:
        enable_checkpointing(model)
        model.enable_input_require_grads()
    made = batch()
    mine = language_model.states(made).view(*made.input_ids.shape, -1)
    sum((mine[n, : len(r["input_ids"])] ** 2).sum() for n, r in enumerate(rows())).backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    plain = model.get_base_model() if adapted else model
    sum((alone(plain, row) ** 2).sum() for row in rows()).backward()
    expected = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(found) == len(expected) > 0
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_no_mask_is_made(monkeypatch):
    seen = []

    def noted(module, query, key, value, mask, **options):
        seen.append((query.shape[2], mask))
        return query.transpose(1, 2), None

    language_model = LanguageModel(tiny.model())
    monkeypatch.setattr(attention, "_plain", noted)
    language_model.states(batch())
    lengths = [n for some in LENGTHS for n in some]  # no padding
    assert seen == [(n, None) for n in lengths] * 2  # of each layer


def test_padded_rows_and_generation_stay_as_they_were():
    tokenizer = tiny.byte_tokenizer()
    options = {"max_new_tokens": 6, "temperature": 0.0}
    prompts = ["Once upon a time", "S"]
    plain = tiny.model(vocabulary=len(tokenizer))
    before = generate(plain, tokenizer, prompts, **options)
    model = tiny.model(vocabulary=len(tokenizer))
    assert LanguageModel(model).isolates
    assert generate(model, tokenizer, prompts, **options) == before
    ids, mask = torch.arange(12).view(2, 6), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    found = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(found, plain(input_ids=ids, attention_mask=mask).logits)


def test_the_saved_config_does_not_know(tmp_path):
    model = tiny.model()
    LanguageModel(model)
    model.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("attention", ["eager"])
def test_another_way_that_was_asked_for_is_kept(attention):
    model = tiny.model()
    model.set_attn_implementation(attention)
    language_model = LanguageModel(model)
    assert model.config._attn_implementation == attention
    assert language_model.isolates


def made_on_the_gpu(name, precision=torch.bfloat16, weights=torch.float32):
    """A language model that computes in half, and a batch of packed rows."""
    model = LanguageModel(model_of(name).to("cuda", weights), precision)
    return model, Collate(tiny.split_of([np.zeros(9)]), 64, torch.device("cuda"))(rows())


@pytest.fixture
def calls(monkeypatch):
    """How documents attend from here on: "at once" or "piece", a word for each call."""
    seen, at_once, piece = [], attention._at_once, attention._piece
    monkeypatch.setattr(attention, "_at_once", lambda *a: (seen.append("at once"), at_once(*a))[1])
    monkeypatch.setattr(attention, "_piece", lambda *a: (seen.append("piece"), piece(*a))[1])
    return seen


def assert_near_in_half(name, language_model, made, precision=torch.bfloat16):
    with torch.autocast("cuda", precision):
        states = language_model.states(made).view(*made.input_ids.shape, -1)
    slow = model_of(name)
    for n, row in enumerate(rows()):
        expected = alone(slow, row)
        found = states[n, : len(expected)].float().cpu()
        torch.testing.assert_close(found, expected, atol=0.1, rtol=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", KINDS)
def test_on_a_gpu_in_half_all_documents_attend_at_once(name, weights, precision, calls):
    language_model, made = made_on_the_gpu(name, precision, weights)
    calls.clear()
    assert_near_in_half(name, language_model, made, precision)
    assert calls == ["at once"] * 2  # a call in each layer


def in_torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):
    raise AssertionError("it knows no scale")


def without_flash(*arguments, scale, window_size, enable_gqa=False):
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")


def that_mixes_documents(query, key, value, *arguments, scale, window_size, enable_gqa=False):
    return query * 0 + 1


@pytest.fixture
def torch_with(monkeypatch):
    def replaced(function):
        module = None if function is None else SimpleNamespace(varlen_attn=function)
        monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
        attention._varlen.cache_clear()

    yield replaced
    attention._varlen.cache_clear()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (None, r"LlamaForCausalLM: .* one by one, which is slower \(torch 2.11 is the first"),
        (in_torch_2_10, "torch 2.11 is the first"),
        (without_flash, "only supports Ampere"),
        (that_mixes_documents, "gives other numbers"),
    ],
)
def test_without_a_kernel_that_is_exact_documents_attend_one_by_one(
    kernel, said, torch_with, calls, caplog
):
    torch_with(kernel)
    with caplog.at_level("INFO", "kdcore"):
        language_model, made = made_on_the_gpu("llama")
    assert re.search(said, caplog.text)
    calls.clear()
    assert_near_in_half("llama", language_model, made)
    assert set(calls) == {"piece"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_kernel_that_knows_no_groups_gets_keys_for_each_query(monkeypatch, calls):
    known = attention._varlen()[0]

    def ungrouped(*tensors, scale, window_size):
        assert len({each.shape for each in tensors[:3]}) == 1
        return known(*tensors, scale=scale, window_size=window_size)

    monkeypatch.setattr(attention, "_varlen", lambda: (ungrouped, False))
    language_model, made = made_on_the_gpu("qwen2")
    calls.clear()
    assert_near_in_half("qwen2", language_model, made)
    assert calls == ["at once"] * 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_grouped_queries_in_float32_take_a_kernel(monkeypatch):
    """Only plain products of [time, time] take groups in float32."""
    grouped, plain = [], attention._plain

    def noted(module, query, key, *others, **options):
        grouped.append(query.shape[1] != key.shape[1])
        return plain(module, query, key, *others, **options)

    monkeypatch.setattr(attention, "_plain", noted)
    language_model, made = made_on_the_gpu("qwen2", None)
    grouped.clear()
    language_model.states(made)
    assert grouped and not any(grouped)


def test_a_model_may_be_proved_again():
    model = tiny.model()
    first, second = LanguageModel(model), LanguageModel(model)
    assert first._packs and second._packs
    assert model.config._attn_implementation == attention.NAME


@pytest.mark.slow
def test_compiled_layers_serve_packed_rows_of_any_lengths():
    from torch._dynamo.utils import counters

    model = LanguageModel(tiny.model("llama"))
    collate = Collate(tiny.split_of([np.zeros(9)]), 64, tiny.CPU)
    given = [collate(rows()[: n + 1]) for n in (3, 1, 2, 3)]
    plain = [model.states(each) for each in given]
    model.compile_layers(backend="eager")
    graphs = []
    for each, exact in zip(given, plain, strict=True):
        torch.testing.assert_close(model.states(each), exact, rtol=1e-5, atol=1e-6)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs[2] == graphs[-1]  # of one size, then of any; never of these lengths
    names = model.model.state_dict().keys()
    assert names == tiny.model("llama").state_dict().keys()


def test_two_right_kernels_of_half_precision_are_near_and_a_wrong_one_is_not():
    """sdpa and eager attention on smollm2-135m in bf16 are 0.0151 of the largest value apart."""
    wanted = torch.linspace(-1, 1, 64)
    assert attention._near(wanted + 0.0151, wanted)
    assert not attention._near(wanted + 0.05, wanted)

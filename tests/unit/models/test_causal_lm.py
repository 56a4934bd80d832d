import logging

import pytest
import tiny
import torch
from torch import nn
from transformers import LlamaForCausalLM

from kdcore import LanguageModel, RunError
from kdcore.models.logit_transforms import Scale, SoftCap

LENGTHS = (7, 5, 9, 4)
LAYOUT = [[(0, 0, 7), (1, 0, 5)], [(2, 0, 9)], [(3, 0, 4), (1, 0, 3), (1, 3, 5)]]


def packed(vocabulary=64, change=None):
    some = tiny.documents(LENGTHS, vocabulary)
    if change is not None:
        some[change] = (some[change] + 1) % vocabulary
    return tiny.batch(some, LAYOUT, vocabulary)


def logits_of(language_model, batch):
    return language_model.logits(language_model.states(batch))


def real(logits, batch):
    """Without what stands at padding, which is anything."""
    return logits.flatten(0, -2)[batch.document.flatten() >= 0].float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_head_of_trunk_is_the_model(kind, dtype):
    model = tiny.model(kind, dtype=dtype).eval()
    batch = packed()
    language_model = LanguageModel(model)
    assert language_model.weight is model.get_output_embeddings().weight
    assert language_model.width == 64
    with torch.no_grad():
        whole = model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
        ).logits
        mine = logits_of(language_model, batch)
    assert mine.dtype == torch.float32
    coarse = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(real(mine, batch), real(whole, batch), rtol=coarse, atol=coarse)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_packed_documents_do_not_see_each_other(kind, training):
    model = tiny.model(kind)
    if kind == "gpt2":
        model.config.resid_pdrop = 0.0
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    language_model = LanguageModel(model)
    model.train(training)
    for changed in range(len(LENGTHS)):
        before, after = packed(), packed(change=changed)
        others = (before.document.flatten() >= 0) & (before.document.flatten() != changed)
        with torch.no_grad():
            one, two = logits_of(language_model, before), logits_of(language_model, after)
        torch.testing.assert_close(one[others], two[others], rtol=0, atol=1e-6)
        assert (one - two).abs().max() > 0.01


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_packed_logits_are_those_of_each_document_alone(kind):
    language_model = LanguageModel(tiny.model(kind).eval())
    some = tiny.documents(LENGTHS)
    batch = tiny.batch(some, LAYOUT)
    with torch.no_grad():
        together = logits_of(language_model, batch).view(*batch.input_ids.shape, -1)
        for row, pieces in enumerate(LAYOUT):
            begin = 0
            for piece in pieces:
                size = piece[2] - piece[1]
                alone = logits_of(language_model, tiny.batch(some, [[piece]]))
                seen = together[row, begin : begin + size]
                torch.testing.assert_close(seen, alone, rtol=1e-5, atol=1e-5)
                begin += size


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_with_a_cache_they_would(kind):
    model = tiny.model(kind).eval()
    found = []
    for change in (None, 0):
        batch = packed(change=change)
        ids, positions = batch.input_ids, batch.position_ids
        with torch.no_grad():
            found.append(model(input_ids=ids, position_ids=positions, use_cache=True).logits)
    other = batch.document == 1
    assert (found[0] - found[1])[other].abs().max() > 0.01


def test_padding_of_packed_rows_is_a_piece_of_its_own():
    batch = packed()
    assert batch.attention_mask is None
    assert batch.position_ids[1].tolist() == [*range(9), 0, 1, 2]
    assert batch.document[1, 9:].tolist() == [-1, -1, -1]
    language_model = LanguageModel(tiny.model().eval())
    with torch.no_grad():
        before = logits_of(language_model, batch)
        batch.input_ids[1, 9:] = 17
        after = logits_of(language_model, batch)
    real = batch.document.flatten() >= 0
    assert torch.equal(before[real], after[real])


def test_padded_rows_use_the_mask():
    language_model = LanguageModel(tiny.model().eval())
    some = tiny.documents((6, 3))
    batch = tiny.batch(some, [[(0, 0, 6)], [(1, 0, 3)]])
    assert batch.attention_mask is not None
    with torch.no_grad():
        both = logits_of(language_model, batch).view(2, 6, -1)
        alone = logits_of(language_model, tiny.batch(some, [[(1, 0, 3)]]))
    torch.testing.assert_close(both[1, :3], alone)


def test_gradient_reaches_trunk_and_head():
    model = tiny.model()
    language_model = LanguageModel(model)
    language_model.logits(language_model.states(packed())).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


class Shifted(LlamaForCausalLM):
    """Does to its logits what no configuration tells."""

    def forward(self, **inputs):
        out = super().forward(**inputs)
        out.logits = out.logits + 1
        return out


def assert_logits_are_the_models(language_model, model):
    batch = packed()
    with torch.no_grad():
        whole = model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
        ).logits
        mine = logits_of(language_model, batch)
    torch.testing.assert_close(real(mine, batch), real(whole, batch))


def test_unknown_logits_fall_back_and_say_so(caplog):
    model = Shifted(tiny.model().config).eval()
    with caplog.at_level(logging.INFO, logger="kdcore"):
        language_model = LanguageModel(model)
    assert "Shifted computes more than trunk and head" in caplog.text
    assert language_model.weight is None and language_model.width == 64
    assert_logits_are_the_models(language_model, model)


@pytest.mark.parametrize(
    ("kind", "options", "bend"),
    [
        ("gemma2", {"initializer_range": 0.01}, SoftCap(30.0)),
        ("gemma2", {"final_logit_softcapping": 1.5}, SoftCap(1.5)),
        ("gemma2", {"final_logit_softcapping": None}, None),
        ("granite", {"logits_scaling": 8.0}, Scale(1 / 8)),
        ("granite", {"logits_scaling": 1.0}, None),
        ("cohere", {"logit_scale": 0.0625}, Scale(0.0625)),
    ],
)
def test_scaled_and_capped_logits_keep_their_head(kind, options, bend):
    model = tiny.model(kind, **options).eval()
    language_model = LanguageModel(model)
    assert language_model.weight is model.get_output_embeddings().weight
    assert language_model.bend == bend
    assert_logits_are_the_models(language_model, model)


def test_a_configuration_that_lies_is_not_believed():
    model = tiny.model("granite", logits_scaling=8.0)
    language_model = LanguageModel(model)
    model.config.logits_scaling = 4.0  # the model reads it too
    assert LanguageModel(model).bend == Scale(0.25)
    liar = tiny.model()
    liar.config.logit_scale = 0.5  # a Llama does not
    assert LanguageModel(liar).bend is None and language_model.bend == Scale(1 / 8)


def test_a_head_with_a_bias():
    model = tiny.model("phi", num_key_value_heads=4)
    language_model = LanguageModel(model)
    assert language_model.bias is not None
    nn.init.normal_(language_model.bias)
    batch = packed()
    with torch.no_grad():
        whole = model.eval()(input_ids=batch.input_ids, position_ids=batch.position_ids).logits
        one_row = model(
            input_ids=batch.input_ids[1:2, :9], position_ids=batch.position_ids[1:2, :9]
        ).logits[0]
        mine = logits_of(language_model, batch).view_as(whole)[1, :9]
    torch.testing.assert_close(mine, one_row)


@pytest.mark.parametrize("target", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
def test_adapters(target):
    peft = pytest.importorskip("peft")
    base = tiny.model()
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=target))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    language_model = LanguageModel(model)
    assert (language_model.weight is None) == ("lm_head" in target)
    batch = packed()
    with torch.no_grad():
        whole = model.eval()(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
        ).logits
        mine = logits_of(language_model, batch)
    torch.testing.assert_close(real(mine, batch), real(whole, batch))


def test_models_without_isolation_refuse_packed_rows():
    bloom = tiny.model("bloom", hidden_size=32, n_head=4, n_layer=2)
    language_model = LanguageModel(bloom.eval())
    with pytest.raises(RunError, match="BloomForCausalLM attends across packed documents"):
        language_model.states(packed())
    some = tiny.documents((6, 3))
    language_model.states(tiny.batch(some, [[(0, 0, 6)], [(1, 0, 3)]]))
    language_model.states(tiny.batch(some, [[(0, 0, 6)]]))


def test_modes_and_random_state_stay():
    model = tiny.model()
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    LanguageModel(model)
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert not model.lm_head._forward_pre_hooks


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_on_a_gpu_in_bf16(kind):
    model = tiny.model(kind, dtype=torch.bfloat16).cuda()
    language_model = LanguageModel(model)
    assert language_model.isolates and language_model.weight is not None
    states = torch.randn(9, language_model.weight.shape[1], device="cuda").bfloat16()
    made = language_model.logits(states)
    exact = states.double() @ language_model.weight.double().t()
    assert made.dtype == torch.float32
    torch.testing.assert_close(made.double(), exact, rtol=1e-4, atol=1e-4)
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(language_model.logits(states), made)


def test_pads_are_not_looked_for(monkeypatch):
    """GPT-2 does so in each call without a mask, which waits for a GPU, and warns of them."""
    from transformers.modeling_utils import PreTrainedModel

    def looked(*_):
        raise AssertionError("it looked at the ids")

    monkeypatch.setattr(PreTrainedModel, "warn_if_padding_and_no_attention_mask", looked)
    LanguageModel(tiny.model("gpt2"))

"""Positions that look at the whole call: what a document is does not depend on its neighbours."""

import pytest
import tiny
import torch
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from kdcore import LanguageModel, RunError
from kdcore.models import positions

LENGTHS = (7, 40, 33, 32, 5, 60)
LAYOUTS = {
    "packed": [[(0, 0, 7), (1, 0, 40), (4, 0, 5)], [(2, 0, 33)], [(3, 0, 32), (5, 0, 60)]],
    "one a row": [[(n, 0, length)] for n, length in enumerate(LENGTHS)],
    "all short": [[(0, 0, 7), (3, 0, 32)], [(4, 0, 5)]],
    "all long": [[(1, 0, 40)], [(2, 0, 33), (5, 0, 60)]],
}


def longrope(**options):
    """It changes its frequencies behind the 32nd position."""
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1, 4, 16, 64]}
    scaling["long_factor"] = [float(each) for each in scaling["long_factor"]]
    shape = {"num_key_value_heads": 4, "sliding_window": None}
    reach = {"max_position_embeddings": 128, "original_max_position_embeddings": 32}
    return tiny.model("phi3", rope_scaling=scaling, **shape, **reach, **options).eval()


def alone(model, some):
    """What plain transformers makes of each document by itself."""
    with torch.no_grad():
        return [
            model(input_ids=torch.tensor(each)[None], use_cache=False).logits[0] for each in some
        ]


def assert_alone(language_model, expected, batch):
    with torch.no_grad():
        logits = language_model.logits(language_model.states(batch))
    document, offset = batch.document.flatten(), batch.offset.flatten()
    for n, each in enumerate(expected):
        here = document == n
        torch.testing.assert_close(
            logits[here], each[offset[here]], rtol=1e-4, atol=1e-4, msg=f"document {n}"
        )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_document_is_independent_of_others_in_its_row(layout, attention):
    model = longrope()
    some = tiny.documents(LENGTHS)
    expected = alone(model, some)
    model.set_attn_implementation(attention)
    assert_alone(LanguageModel(model), expected, tiny.batch(some, LAYOUTS[layout]))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_hidden_states_are_those_of_each_document_alone(layout, attention):
    model, some = longrope(), tiny.documents(LENGTHS)
    with torch.no_grad():
        separate = [
            model(
                input_ids=torch.tensor(each)[None], use_cache=False, output_hidden_states=True
            ).hidden_states
            for each in some
        ]
    model.set_attn_implementation(attention)
    batch, layers = tiny.batch(some, LAYOUTS[layout]), [0, 1, 2, -1]
    with torch.no_grad():
        states, kept = LanguageModel(model).layer_states(batch, layers)
    assert torch.equal(states, kept[-1])
    document, offset = batch.document.flatten(), batch.offset.flatten()
    for layer, found in zip(layers, kept, strict=True):
        for n, each in enumerate(separate):
            here = document == n
            expected = each[layer][0][offset[here]]
            torch.testing.assert_close(found[here], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_gradient_is_that_of_each_document_alone(attention):
    model = longrope()
    some = tiny.documents(LENGTHS)
    sum(
        model(input_ids=torch.tensor(each)[None], use_cache=False).logits.square().sum()
        for each in some
    ).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.set_attn_implementation(attention)
    batch = tiny.batch(some, LAYOUTS["packed"])
    language_model = LanguageModel(model)
    states = language_model.states(batch)[batch.document.flatten() >= 0]
    model.lm_head(states).square().sum().backward()
    for found, each in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(found.grad, each, rtol=1e-3, atol=1e-3)


def test_fresh_weights_hide_it_and_it_is_seen_all_the_same():
    assert LanguageModel(longrope(initializer_range=1e-6))._switch == 32


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_other_models_go_through_the_trunk_at_once(kind):
    assert LanguageModel(tiny.model(kind))._switch is None


class Stretched(nn.Module):
    """Rotary positions that are drawn together as the longest in the call grows."""

    def __init__(self, rotary):
        super().__init__()
        self.rotary = rotary

    def forward(self, x, position_ids):
        longest = int(position_ids.max()) + 1
        return self.rotary(x, position_ids * min(1.0, 32 / longest))


def test_positions_that_differ_at_each_length_are_refused_beyond_those_that_do_not():
    model = tiny.model(max_position_embeddings=128)
    model.model.rotary_emb = Stretched(model.model.rotary_emb)
    some = tiny.documents(LENGTHS)
    expected = alone(model.eval(), some)
    language_model = LanguageModel(model)
    assert_alone(language_model, expected, tiny.batch(some, LAYOUTS["all short"]))
    with pytest.raises(RunError, match=r"other positions for each length.* data\.block=32"):
        language_model.states(tiny.batch(some, LAYOUTS["one a row"]))
    with pytest.raises(RunError, match=r"depend on a row's neighbours"):
        language_model.check_length(33)
    language_model.check_length(32)


def test_the_switch_is_found_in_few_calls():
    calls = []

    def probe(length):
        calls.append(length)
        return [torch.tensor(length > 4096)]

    def same(some, others):
        return all(map(torch.equal, some, others))

    assert positions.switch_of(probe, same, 16, 131072) == (4096, True)
    assert len(calls) < 50 and max(calls) == 131072
    assert calls[-1] == 16  # what remembers a long call has forgotten it
    assert positions.switch_of(probe, same, 16, 4096) == (None, True)


def scaled_by_place(**options):
    """Llama 4 without rotary positions in a layer: it scales queries from a row's 41st token on."""
    layers = {"no_rope_layers": [1, 0], "layer_types": ["chunked_attention", "full_attention"]}
    experts = {"num_local_experts": 2, "intermediate_size_mlp": 48}
    scaling = {"attn_temperature_tuning": True, "floor_scale": 40}
    return tiny.model("llama4_text", **layers, **experts, **scaling, **options).eval()


def sparse(**options):
    """It attends to the 16 keys that its indexer chooses."""
    if "deepseek_v32" not in CONFIG_MAPPING_NAMES:
        pytest.skip("this transformers has no sparse attention")
    ranks = {"kv_lora_rank": 16, "q_lora_rank": 16, "num_key_value_heads": 4}
    heads = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    # Many heads: the reference chooses arbitrarily among keys that all heads give 0.
    index = {"index_topk": 16, "index_n_heads": 24, "index_head_dim": 16}
    experts = {"n_routed_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2}
    groups = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
    every = ranks | heads | index | experts | groups
    return tiny.model("deepseek_v32", rope_parameters=rope, **every, **options).eval()


@pytest.mark.parametrize("spread", [0.2, 0.02])
@pytest.mark.parametrize("made", [scaled_by_place, sparse])
def test_attention_that_changes_with_length_is_found_in_the_first_batch_beyond_it(made, spread):
    model, some = made(initializer_range=spread), tiny.documents(LENGTHS)
    expected = alone(model, some)
    language_model = LanguageModel(model)
    assert_alone(language_model, expected, tiny.batch(some, [[(4, 0, 5), (0, 0, 7)]]))
    with pytest.raises(RunError, match='attends across packed documents; use rows = "one"'):
        language_model.states(tiny.batch(some, LAYOUTS["packed"]))
    assert_alone(language_model, expected, tiny.batch(some, LAYOUTS["one a row"]))


@pytest.mark.parametrize("made", [scaled_by_place, sparse])
def test_documents_in_rows_of_their_own_pass_beyond_that_length(made):
    model, some = made(), tiny.documents(LENGTHS)
    expected = alone(model, some)
    assert_alone(LanguageModel(model), expected, tiny.batch(some, LAYOUTS["one a row"]))


def test_only_lengths_of_the_config_are_proved_again():
    config = scaled_by_place().config
    packing = positions.evenly(torch.zeros(1, 64), 32)
    left = positions.UnprovedLengths(config)
    assert left.due(40, packing) == 0
    assert left.due(64, packing) == 2  # two pieces of 32 exceed 40
    assert left.due(64, packing) == 0
    assert left.due(500, positions.evenly(torch.zeros(1, 50), 50)) == 2  # a piece alone exceeds it
    assert positions.UnprovedLengths(tiny.model().config).due(1 << 20, packing) == 0

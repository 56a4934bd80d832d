"""Parameters part by part: they add up to the model, whatever it is made of."""

import pytest
import tiny
from torch import nn

from kdcore.analysis.parameters import Part, parameters_of, parts_of


def by_name(model):
    return {part.name: part for part in parts_of(model)}


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_the_parts_are_all_of_the_model(kind, tied):
    model = tiny.model(kind, tie_word_embeddings=tied)
    everything = sum(parameter.numel() for parameter in model.parameters())
    assert sum(part.total for part in parts_of(model)) == everything
    assert parameters_of(model) == (everything, everything)


def test_a_llama_by_hand():
    assert parts_of(tiny.model("llama", vocabulary=64, tie_word_embeddings=False)) == [
        Part("embeddings", 1, 64 * 32, 64 * 32),
        Part("layers: self_attn.q_proj", 2, 32 * 32, 2 * 32 * 32),
        Part("layers: self_attn.k_proj", 2, 32 * 16, 2 * 32 * 16),
        Part("layers: self_attn.v_proj", 2, 32 * 16, 2 * 32 * 16),
        Part("layers: self_attn.o_proj", 2, 32 * 32, 2 * 32 * 32),
        Part("layers: mlp.gate_proj", 2, 32 * 48, 2 * 32 * 48),
        Part("layers: mlp.up_proj", 2, 32 * 48, 2 * 32 * 48),
        Part("layers: mlp.down_proj", 2, 48 * 32, 2 * 48 * 32),
        Part("layers: norms", 2, 2 * 32, 2 * 2 * 32),
        Part("norm", 1, 32, 32),
        Part("head", 1, 64 * 32, 64 * 32),
    ]


def test_a_tied_head_is_reported_and_not_counted_twice():
    head = by_name(tiny.model("llama", tie_word_embeddings=True))["head"]
    assert (head.total, head.trained) == (0, 0)
    assert "tied" in head.note


def test_frozen_parameters_are_not_trained():
    model = tiny.model("llama", tie_word_embeddings=False)
    model.get_input_embeddings().weight.requires_grad_(False)
    model.model.layers[1].mlp.requires_grad_(False)
    parts = by_name(model)
    assert parts["embeddings"].trained == 0
    down = parts["layers: mlp.down_proj"]
    assert down.trained == down.each  # one of two
    assert parameters_of(model)[1] == sum(part.trained for part in parts.values())


def test_blocks_of_another_size_are_a_part_of_their_own():
    model = tiny.model("llama", tie_word_embeddings=False)
    model.model.layers[1].mlp.down_proj = nn.Linear(48, 16, bias=False)
    found = [part for part in parts_of(model) if part.name == "layers: mlp.down_proj"]
    assert [(part.count, part.each) for part in found] == [(1, 48 * 32), (1, 48 * 16)]

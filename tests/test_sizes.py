"""Parameters part by part: they add up to the model, whatever it is made of."""

import pytest
import tiny

from kdcore.sizes import Part, parameters_of, parts_of


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
        Part("layers: self_attn", 2, 2 * 32 * 32 + 2 * 16 * 32, 2 * (2 * 32 * 32 + 2 * 16 * 32)),
        Part("layers: mlp", 2, 3 * 32 * 48, 2 * 3 * 32 * 48),
        Part("layers: norms", 2, 2 * 32, 2 * 2 * 32),
        Part("norm", 1, 32, 32),
        Part("head", 1, 64 * 32, 64 * 32),
    ]


def test_a_tied_head_is_told_and_not_counted_twice():
    head = by_name(tiny.model("llama", tie_word_embeddings=True))["head"]
    assert (head.total, head.trained) == (0, 0)
    assert "tied" in head.note


def test_frozen_parameters_are_not_trained():
    model = tiny.model("llama", tie_word_embeddings=False)
    model.get_input_embeddings().weight.requires_grad_(False)
    model.model.layers[1].mlp.requires_grad_(False)
    parts = by_name(model)
    assert parts["embeddings"].trained == 0
    assert parts["layers: mlp"].trained == parts["layers: mlp"].each  # one of two
    assert parameters_of(model)[1] == sum(part.trained for part in parts.values())


def test_blocks_of_another_size_are_a_part_of_their_own():
    model = tiny.model("llama", tie_word_embeddings=False)
    model.model.layers[1].mlp.down_proj = None
    found = [part for part in parts_of(model) if part.name == "layers: mlp"]
    assert [(part.count, part.each) for part in found] == [(1, 3 * 32 * 48), (1, 2 * 32 * 48)]

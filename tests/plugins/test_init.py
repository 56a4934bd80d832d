"""Initialisation reaches every matrix, and nothing else."""

import math

import pytest
import torch
from kdcore_init import Init, kdcore_patches
from pydantic import ValidationError

from kdcore.testing.fakes import tiny_llama


def tiny_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=500, n_embd=128, n_layer=1, n_head=2, n_positions=32)
    return GPT2LMHeadModel(config)


def initialised(scheme, model, seed=0):
    torch.manual_seed(seed)
    return Init(scheme=scheme).apply(model)


EXPECTED = {  # standard deviation by inputs and outputs
    "kaiming-uniform": lambda inputs, outputs: math.sqrt(2 / inputs),
    "kaiming-normal": lambda inputs, outputs: math.sqrt(2 / inputs),
    "xavier-uniform": lambda inputs, outputs: math.sqrt(2 / (inputs + outputs)),
    "xavier-normal": lambda inputs, outputs: math.sqrt(2 / (inputs + outputs)),
    "normal": lambda inputs, outputs: 0.02,
}


@pytest.mark.parametrize("scheme", EXPECTED)
def test_every_matrix_is_drawn_by_the_scheme(scheme):
    model = initialised(scheme, tiny_llama(vocabulary=500, hidden=128))
    matrices = {name: x for name, x in model.named_parameters() if x.dim() >= 2}
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= set(matrices)
    for name, matrix in matrices.items():
        outputs, inputs = matrix.shape
        expected = EXPECTED[scheme](inputs, outputs)
        assert matrix.std().item() == pytest.approx(expected, rel=0.05), name
        if "uniform" in scheme:
            assert matrix.abs().max() <= expected * math.sqrt(3) + 1e-6


@pytest.mark.parametrize("scheme", EXPECTED)
def test_transposed_layers_of_gpt2_are_drawn_by_their_inputs(scheme):
    model = initialised(scheme, tiny_gpt2())
    weight = model.transformer.h[0].mlp.c_fc.weight  # [inputs, outputs]
    assert weight.shape == (128, 512)
    assert weight.std().item() == pytest.approx(EXPECTED[scheme](128, 512), rel=0.05)


def test_the_founding_models_embedding_has_the_deviation_it_had():
    model = initialised("kaiming-uniform", tiny_llama(vocabulary=500, hidden=256))
    assert model.get_input_embeddings().weight.std().item() == pytest.approx(0.0884, rel=0.02)


def test_norms_stay_at_one_and_biases_at_zero():
    model = initialised("kaiming-uniform", tiny_gpt2())
    for name, vector in model.named_parameters():
        if vector.dim() < 2:
            assert (vector == (0 if name.endswith("bias") else 1)).all(), name


def test_tied_weights_stay_tied():
    model = initialised("normal", tiny_gpt2())
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_the_global_seed_decides():
    one, same, other = (initialised("normal", tiny_llama(), seed) for seed in (1, 1, 2))
    for name, matrix in one.named_parameters():
        assert matrix.equal(same.get_parameter(name))
    assert not one.lm_head.weight.equal(other.lm_head.weight)


def test_unknown_schemes_are_refused():
    with pytest.raises(ValidationError, match="kaiming-uniform"):
        Init(scheme="kaiming_uniform")


def test_hook_kdcore_patches():
    assert [patch.name for patch in kdcore_patches()] == ["init"]

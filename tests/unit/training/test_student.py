import pytest
import tiny
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from kdcore import Patch, RunError, UsageError, component
from kdcore.api.student import StudentOptions
from kdcore.training.student import check_balance, check_length, make_student

CPU = torch.device("cpu")
CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.byte_tokenizer()


def student(tokenizer, *patches, seed=0, attention=None, **config):
    options = StudentOptions(config=CONFIG | config, attention=attention)
    return make_student(options, tokenizer, patches, seed=seed, device=CPU)


def test_a_fresh_student_has_the_tokenizers_ids(tokenizer):
    config = student(tokenizer).config
    assert config.vocab_size == len(tokenizer)
    assert config.eos_token_id == tokenizer.eos_token_id
    assert (config.bos_token_id, config.pad_token_id) == (None, None)
    assert student(tokenizer, vocab_size=400).config.vocab_size == 400


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gpt_neox"])
def test_a_fresh_student_has_no_dropout_unless_it_is_asked_for(tokenizer, kind):
    size = {"gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2}}.get(
        kind, {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    )
    key = {"gpt2": "resid_pdrop", "opt": "dropout", "gpt_neox": "hidden_dropout"}[kind]

    def dropouts(**config):
        options = StudentOptions(config={"model_type": kind} | size | config)
        made = make_student(options, tokenizer, [], seed=0, device=CPU).train()
        ids = torch.arange(40)[None]
        return torch.equal(made(input_ids=ids).logits, made(input_ids=ids).logits)

    assert dropouts()
    assert not dropouts(**{key: 0.5})


def test_the_seed_draws_the_weights(tokenizer):
    def weight(seed):
        return student(tokenizer, seed=seed).lm_head.weight

    assert torch.equal(weight(0), weight(0))
    assert not torch.equal(weight(0), weight(1))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "lama"}, "transformers knows no such model"),
        (
            {"hiden_size": 16},
            "'hiden_size' is not an option of 'llama'; did you mean 'hidden_size'",
        ),
        ({"hidden_size": "large"}, "makes no 'llama' model: Field 'hidden_size' expected int"),
        ({"num_attention_heads": 3}, "is not a multiple of the number of attention heads"),
        ({"hidden_act": "nothing"}, "makes no 'llama' model: there is no 'nothing'"),
    ],
)
def test_a_config_that_makes_no_model(tokenizer, config, said):
    with pytest.raises(UsageError, match=r"\[student.config\]") as caught:
        student(tokenizer, **config)
    assert said in str(caught.value)


def test_an_option_of_other_models_is_no_option(tokenizer):
    gpt2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}
    options = StudentOptions(config=gpt2 | {"rope_theta": 500.0})
    with pytest.raises(UsageError, match="'rope_theta' is not an option of 'gpt2'"):
        make_student(options, tokenizer, [], seed=0, device=CPU)
    made = student(tokenizer, rope_theta=500.0)
    assert made.config.rope_parameters["rope_theta"] == 500.0


def test_attention_is_what_was_asked_for(tokenizer):
    assert student(tokenizer, attention="eager").config._attn_implementation == "eager"


def test_a_loaded_student_has_float32_masters(tmp_path, tokenizer):
    tiny.save(tmp_path, tokenizer=tokenizer, dtype=torch.bfloat16)
    options = StudentOptions(model=str(tmp_path), dtype="bf16")
    made = make_student(options, tokenizer, [], seed=0, device=CPU)
    assert {parameter.dtype for parameter in made.parameters()} == {torch.float32}


@component
class Freeze(Patch):
    """Everything but what has this in its name."""

    name = "freeze"
    but: str

    def apply(self, model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self.but in name)
        return model


def test_what_is_frozen_stays_in_its_type(tmp_path, tokenizer):
    tiny.save(tmp_path, tokenizer=tokenizer, dtype=torch.bfloat16)
    options = StudentOptions(model=str(tmp_path), dtype="bf16")
    made = make_student(options, tokenizer, [Freeze(but="norm")], seed=0, device=CPU)
    for parameter in made.parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16)


def test_patches_are_applied_in_order(tokenizer):
    @component
    class Fill(Patch):
        name = "fill"
        value: float

        def apply(self, model):
            nn.init.constant_(model.lm_head.weight, self.value)
            return model

    made = student(tokenizer, Fill(value=1.0), Fill(value=2.0))
    assert (made.lm_head.weight == 2).all()


def test_a_student_that_learns_nothing_is_refused(tokenizer):
    with pytest.raises(UsageError, match="no trainable parameters"):
        student(tokenizer, Freeze(but="no such name"))


def test_rows_longer_than_the_positions_reach_are_refused(tokenizer):
    made = student(tokenizer, max_position_embeddings=64)
    check_length(made, 64)
    with pytest.raises(RunError, match=r"longer than the student's 64 .* --set data\.block=64"):
        check_length(made, 65)


def test_a_student_that_reads_images_too_has_the_positions_of_its_text_model():
    text = {key: value for key, value in CONFIG.items() if key != "model_type"}
    text |= {"vocab_size": 64, "head_dim": 8, "max_position_embeddings": 64}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4
    )
    made = AutoModelForCausalLM.from_config(config)
    check_length(made, 64)
    with pytest.raises(RunError, match="longer than the student's 64 positions"):
        check_length(made, 65)


MIXTURE = {
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "output_router_logits": True,
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}


@pytest.mark.parametrize(
    "config, said",
    [
        (MIXTURE | {"router_aux_loss_coef": 50.0}, r"\(router_aux_loss_coef = 50\)"),
        ({"model_type": "bamba", "z_loss_coefficient": 0.1} | MAMBA, r"\(z_loss_coefficient = 0.1"),
    ],
)
def test_a_balance_loss_that_the_config_asks_for_is_not_left_out_silently(tokenizer, config, said):
    made = student(tokenizer, **config)
    with pytest.raises(RunError, match=said + ".* --set student.balance=none"):
        check_balance(made.config, StudentOptions(config=CONFIG))
    check_balance(made.config, StudentOptions(config=CONFIG, balance="none"))


@pytest.mark.parametrize(
    "without", [{"router_aux_loss_coef": 0.0}, {"output_router_logits": False}]
)
def test_a_mixture_of_experts_that_asks_for_none_is_trained(tokenizer, without):
    made = student(tokenizer, **(MIXTURE | {"router_aux_loss_coef": 50.0} | without))
    check_balance(made.config, StudentOptions(config=CONFIG))

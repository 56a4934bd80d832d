import sys
from types import SimpleNamespace

import pytest
import tiny
import torch
from pydantic import ValidationError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from kdcore import UsageError
from kdcore.api.train_options import TrainOptions
from kdcore.optim import make_optimizer
from kdcore.training.setup import optimizer_of

NAMES = ("adamw", "Adam", "sgd", "nadam", "radam", "adafactor", "adamax", "rmsprop", "adagrad")


def model():
    made = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    made[2].requires_grad_(False)
    return made


def test_weight_decay_spares_biases_and_norms():
    made = model()
    optimizer = optimizer_of(TrainOptions(lr=0.1, weight_decay=0.5), made)
    decayed, spared = optimizer.param_groups
    assert [id(p) for p in decayed["params"]] == [id(made[0].weight)]
    assert {id(p) for p in spared["params"]} == {
        id(p) for p in (made[0].bias, *made[1].parameters())
    }
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.5, 0.0)


SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MIXTURE = {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}


def small(kind, **options):
    """A model whose every parameter is 1."""
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options))
    for parameter in made.parameters():
        torch.nn.init.ones_(parameter)
    return made


def decayed_in(made):
    """What a step without gradient makes smaller, by the last two parts of its name."""
    for parameter in made.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer_of(TrainOptions(lr=0.1, weight_decay=0.5), made).step()
    smaller = {name for name, p in made.named_parameters() if (p < 1).any()}
    return {".".join(name.split(".")[-2:]) for name in smaller}


@pytest.mark.parametrize(
    "kind, options, spared, decayed",
    [
        (
            "cohere",
            SMALL | {"use_qk_norm": True},
            {"q_norm.weight", "k_norm.weight", "norm.weight"},
            {"q_proj.weight", "embed_tokens.weight"},
        ),
        (
            "gpt_oss",
            SMALL | MIXTURE,
            {"experts.down_proj_bias", "experts.gate_up_proj_bias", "self_attn.sinks"},
            {"experts.down_proj", "experts.gate_up_proj", "router.weight"},
        ),
        (
            "mamba",
            {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2},
            {"mixer.A_log", "mixer.D", "norm.weight"},
            {"in_proj.weight", "x_proj.weight"},
        ),
        (
            "rwkv",
            {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2},
            {"attention.time_mix_key", "attention.time_decay", "ln1.weight"},
            {"key.weight", "embeddings.weight"},
        ),
    ],
)
def test_weight_decay_depends_on_module_and_name_not_on_shape(kind, options, spared, decayed):
    made = small(kind, **options)
    names = {".".join(name.split(".")[-2:]) for name, _ in made.named_parameters()}
    assert spared | decayed <= names
    smaller = decayed_in(made)
    assert decayed <= smaller
    assert not spared & smaller


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_what_recipes_train_is_decayed_as_ever(kind):
    """Matrices and embeddings, and no vector: the numbers that are published stand on it."""
    made = tiny.model(kind)
    groups = optimizer_of(TrainOptions(lr=0.1, weight_decay=0.5), made).param_groups
    found = [[id(p) for p in group["params"]] for group in groups]
    by_shape = [
        [id(p) for p in made.parameters() if (p.ndim > 1) == wide] for wide in (True, False)
    ]
    assert found == by_shape


def test_options_reach_the_optimizer():
    optimizer = optimizer_of(TrainOptions(lr=0.1, betas=[0.8, 0.95], eps=1e-6), model())
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (0.1, (0.8, 0.95), 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_takes_a_step(name):
    made = model()
    optimizer = optimizer_of(TrainOptions(lr=0.1, optimizer=name), made)
    before = made[0].weight.clone()
    made[0](torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(before, made[0].weight)


@pytest.mark.parametrize("option", [{"betas": [0.8, 0.9]}, {"eps": 1e-6}])
def test_an_option_that_an_optimizer_lacks_is_refused(option):
    with pytest.raises(UsageError, match=r"train\.(betas|eps): the optimizer SGD has no such"):
        optimizer_of(TrainOptions(lr=0.1, optimizer="sgd", **option), model())


@pytest.mark.parametrize(
    "name, said",
    [
        ("adanw", "no optimizer 'adanw'; did you mean 'adamw'"),
        ("muon_x", "no optimizer 'muon_x'; there are .*adamw.*sgd"),
    ],
)
def test_an_unknown_optimizer_is_named_with_those_there_are(name, said):
    with pytest.raises(ValidationError, match=said):
        TrainOptions(lr=0.1, optimizer=name)


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_torch_fused", "AdamW"])
def test_names_of_transformers_are_known(name):
    optimizer = optimizer_of(TrainOptions(lr=0.1, optimizer=name), model())
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["fused"]


def test_a_library_that_is_not_here_is_named_with_what_brings_it(monkeypatch):
    monkeypatch.setattr("kdcore.optim.find_spec", lambda name: None)
    with pytest.raises(ValidationError, match=r"needs bitsandbytes: pip install \"kdcore\[gpu\]"):
        TrainOptions(lr=0.1, optimizer="adamw_8bit")


@pytest.fixture
def bitsandbytes(monkeypatch):
    """Its classes, which take a plain step."""

    class AdamW8bit(torch.optim.AdamW):
        def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
            super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    class Lion(torch.optim.SGD):
        def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0):
            self.betas = betas
            super().__init__(params, lr=lr, weight_decay=weight_decay)

    optim = SimpleNamespace(AdamW8bit=AdamW8bit, PagedAdamW8bit=AdamW8bit, Lion=Lion)
    monkeypatch.setattr("kdcore.optim.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)
    return optim


@pytest.mark.parametrize("name", ["adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"])
def test_optimizers_of_bitsandbytes(bitsandbytes, name):
    options = TrainOptions(lr=0.1, optimizer=name, betas=[0.8, 0.9], weight_decay=0.5)
    optimizer = optimizer_of(options, model())
    assert type(optimizer) is bitsandbytes.AdamW8bit
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    assert optimizer.defaults["betas"] == (0.8, 0.9)


def test_default_betas_are_the_optimizers_own(bitsandbytes):
    options = TrainOptions(lr=0.1, optimizer="lion")
    assert optimizer_of(options, model()).betas == (0.9, 0.99)
    options = TrainOptions(lr=0.1, optimizer="lion", betas=[0.95, 0.98])
    assert optimizer_of(options, model()).betas == (0.95, 0.98)


def test_an_optimizer_that_is_not_fused_on_this_device_is_plain(monkeypatch):
    """As Adagrad is on a GPU before torch 2.12."""

    class Adagrad(torch.optim.Adagrad):
        def __init__(self, groups, lr, weight_decay=0.0, *, fused=None):
            if fused:
                raise RuntimeError("`fused=True` requires all the params to be on ['cpu']")
            super().__init__(groups, lr=lr, weight_decay=weight_decay, fused=fused)

    monkeypatch.setattr(torch.optim, "Adagrad", Adagrad)
    made = make_optimizer("adagrad", torch.nn.Linear(2, 2), lr=0.1)
    assert [group["fused"] for group in made.param_groups] == [False]

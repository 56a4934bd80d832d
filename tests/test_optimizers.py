import pytest
import torch
from torch import nn

from kdcore import UsageError
from kdcore.optimizers import make_optimizer
from kdcore.options import TrainOptions

NAMES = ("adamw", "Adam", "sgd", "nadam", "radam", "adafactor", "adamax", "rmsprop", "adagrad")


def model():
    made = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    made[2].requires_grad_(False)
    return made


def test_weight_decay_spares_biases_and_norms():
    made = model()
    optimizer = make_optimizer(TrainOptions(lr=0.1, weight_decay=0.5), made)
    decayed, spared = optimizer.param_groups
    assert [id(p) for p in decayed["params"]] == [id(made[0].weight)]
    assert {id(p) for p in spared["params"]} == {
        id(p) for p in (made[0].bias, *made[1].parameters())
    }
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.5, 0.0)


def test_options_reach_the_optimizer():
    optimizer = make_optimizer(TrainOptions(lr=0.1, betas=[0.8, 0.95], eps=1e-6), model())
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (0.1, (0.8, 0.95), 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_takes_a_step(name):
    made = model()
    optimizer = make_optimizer(TrainOptions(lr=0.1, optimizer=name), made)
    before = made[0].weight.clone()
    made[0](torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(before, made[0].weight)


@pytest.mark.parametrize("option", [{"betas": [0.8, 0.9]}, {"eps": 1e-6}])
def test_an_option_that_an_optimizer_lacks_is_refused(option):
    with pytest.raises(UsageError, match=r"train\.(betas|eps): the optimizer SGD has no such"):
        make_optimizer(TrainOptions(lr=0.1, optimizer="sgd", **option), model())


def test_an_unknown_optimizer_is_named_with_those_there_are():
    with pytest.raises(UsageError, match=r"'adanw' is none of torch's: .*adamw"):
        make_optimizer(TrainOptions(lr=0.1, optimizer="adanw"), model())

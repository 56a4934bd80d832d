"""bf16 working weights: float32 masters, one cast a step, gradients that add up in float32."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdcore.api.train_options import TrainOptions
from kdcore.errors import RunError
from kdcore.training.gpu.working_weights import WorkingWeights, check_working_weights


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Linear(8, 4)


def gradients_of(layer, inputs):
    """Those of the sum of a bf16 layer's outputs, squared."""
    layer(inputs.bfloat16()).float().square().sum().backward()


def test_in_use_the_parameters_are_bf16_and_afterwards_the_same_masters(layer):
    masters = [p.data_ptr() for p in layer.parameters()]
    working = WorkingWeights([*layer.parameters()])
    with working.in_use():
        assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
        gradients_of(layer, torch.ones(2, 8))
    assert [p.data_ptr() for p in layer.parameters()] == masters
    assert {p.grad.dtype for p in layer.parameters()} == {torch.float32}


def test_the_gradients_of_micro_batches_add_up_in_float32(layer):
    parts = [torch.randn(3, 8), 1e-3 * torch.randn(3, 8)]
    wanted = [torch.zeros_like(p) for p in layer.parameters()]
    for part in parts:
        half = nn.Linear(8, 4).bfloat16()
        half.load_state_dict(layer.state_dict())
        gradients_of(half, part)
        for total, p in zip(wanted, half.parameters(), strict=True):
            total += p.grad.float()
    working = WorkingWeights([*layer.parameters()])
    with working.in_use():
        for part in parts:
            gradients_of(layer, part)
            working.collect()
    for total, p in zip(wanted, layer.parameters(), strict=True):
        assert torch.equal(p.grad, total)


def test_a_step_smaller_than_bf16_reaches_the_masters_and_later_their_copies(layer):
    working = WorkingWeights([*layer.parameters()])
    with torch.no_grad():
        layer.weight.fill_(1.0)
    seen = []
    for _ in range(8):
        with working.in_use():
            seen.append(layer.weight[0, 0].item())
        with torch.no_grad():
            layer.weight += 2**-10  # a bf16 number near 1 moves by 2^-7 at least
    assert float(layer.weight[0, 0]) == 1 + 8 * 2**-10
    assert seen[0] == 1.0 and seen[-1] == 1 + 2**-7


def test_frozen_parameters_stay_what_they_are(layer):
    layer.bias.requires_grad_(False)
    with WorkingWeights([*layer.parameters()]).in_use():
        assert layer.bias.dtype == torch.float32 and layer.weight.dtype == torch.bfloat16


def test_a_block_that_fails_leaves_masters_without_gradients(layer):
    working = WorkingWeights([*layer.parameters()])
    with pytest.raises(torch.OutOfMemoryError), working.in_use():
        gradients_of(layer, torch.ones(2, 8))
        working.collect()
        raise torch.OutOfMemoryError
    assert all(p.grad is None and p.dtype == torch.float32 for p in layer.parameters())
    with working.in_use():  # nothing of the block before is left
        pass
    assert all(p.grad is None for p in layer.parameters())


@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_another_precision_is_refused_in_a_sentence(precision):
    options, accelerator = TrainOptions(lr=1, bf16_weights=True), SimpleNamespace()
    accelerator.mixed_precision = precision
    with pytest.raises(RunError, match=r'needs precision "bf16".*--set train.precision=bf16'):
        check_working_weights(options, accelerator)
    accelerator.mixed_precision = "bf16"
    check_working_weights(options, accelerator)

import pytest
import torch

from kdcore.models.head import LogitsGradient, logits_of

KINDS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("kdcore.models.head._BLOCK", 10)


def drawn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_exact(made, exact):
    close = 1e-12 if made.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(made.double(), exact, rtol=close, atol=close)


@pytest.mark.parametrize("dtype", KINDS)
def test_products_are_not_rounded_to_the_weights_type(dtype):
    wide = torch.promote_types(dtype, torch.float32)
    states, weight, bias = drawn(5, 8, dtype=dtype), drawn(33, 8, dtype=dtype), drawn(33)
    gradient = drawn(5, 33, dtype=wide, seed=1)
    logits = logits_of(states, weight, bias.to(dtype))
    factor = LogitsGradient(gradient, weight.dtype)
    back = factor.to_states(weight)
    total = torch.ones(33, 8, dtype=wide)
    factor.add_to_weight(total, states)
    assert {logits.dtype, back.dtype, total.dtype} == {wide}
    exact = states.double() @ weight.double().t() + bias.to(dtype).double()
    assert_exact(logits, exact)
    assert_exact(back, gradient.double() @ weight.double())
    assert_exact(total, 1 + gradient.double().t() @ states.double())


def test_autocast_does_not_reach_the_product():
    states, weight = drawn(5, 8), drawn(33, 8)
    with torch.autocast("cpu", torch.bfloat16):
        made = logits_of(states, weight)
    assert torch.equal(made, states @ weight.t())

"""What a GPU does and a CPU does not, as kdcore counts on it: products, attention, optimizers."""

import pytest
import torch
from torch.nn import functional as F

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
HALF = (torch.bfloat16, torch.float16)


def random(*shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to("cuda", dtype).requires_grad_()


def gradients(attend, *tensors):
    """Output and gradients of a sum of squares, in float64 on the CPU."""
    out = attend(*tensors)
    found = torch.autograd.grad(out.double().square().sum(), tensors)
    return [each.detach().cpu().double() for each in (out, *found)]


def as_on_the_cpu(attend, *tensors):
    return gradients(attend, *(each.detach().cpu().double().requires_grad_() for each in tensors))


def assert_near(found, wanted, within):
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() <= within * other.abs().max()


def test_devices_do_not_mix():
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(3, device="cuda") + torch.ones(3)
    assert (torch.ones(3, device="cuda") + torch.tensor(1)).tolist() == [2.0] * 3
    assert torch.arange(3, device="cuda")[torch.tensor([2])].tolist() == [2]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_two_devices_do_not_mix():
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(3, device="cuda:0") + torch.ones(3, device="cuda:1")
    assert torch.ones(3, device="cuda:0").to("cuda:1").device.index == 1


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_what_it_is_on_a_cpu(dtype, groups, masked):
    query = random(2, 4, 9, 8, dtype=dtype)
    key, value = (random(2, groups, 9, 8, dtype=dtype, seed=seed) for seed in (1, 2))

    def attend(query, key, value):
        mask = torch.ones(9, 9, dtype=torch.bool, device=query.device).tril() if masked else None
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=not masked, enable_gqa=groups < 4
        )

    within = 1e-5 if dtype == torch.float32 else 1e-2
    found, wanted = (way(attend, query, key, value) for way in (gradients, as_on_the_cpu))
    assert_near(found, wanted, within)


@pytest.mark.parametrize("dtype", HALF)
def test_pieces_of_varlen_attention_are_causal_and_alone(dtype):
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    query = random(9, 4, 8, dtype=dtype)
    key, value = (random(9, 2, 8, dtype=dtype, seed=seed) for seed in (1, 2))
    starts = torch.tensor([0, 4, 9], dtype=torch.int32, device="cuda")

    def at_once(query, key, value):
        return varlen.varlen_attn(
            *(query, key, value, starts, starts, 5, 5), window_size=(-1, 0), enable_gqa=True
        )

    def by_piece(query, key, value):
        each = [
            F.scaled_dot_product_attention(
                *(x[at].transpose(0, 1)[None] for x in (query, key, value)),
                is_causal=True,
                enable_gqa=True,
            )[0].transpose(0, 1)
            for at in (slice(0, 4), slice(4, 9))
        ]
        return torch.cat(each)

    found, wanted = (
        gradients(at_once, query, key, value),
        as_on_the_cpu(by_piece, query, key, value),
    )
    assert_near(found, wanted, 1e-2)


def test_varlen_attention_takes_half_types_only():
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    starts = torch.tensor([0, 4], dtype=torch.int32, device="cuda")
    tensors = [random(4, 2, 8, dtype=torch.float32, seed=seed) for seed in range(3)]
    with pytest.raises(RuntimeError):
        varlen.varlen_attn(*tensors, starts, starts, 4, 4)


@pytest.mark.parametrize("dtype", HALF)
def test_products_of_halves_come_out_in_float32(dtype):
    a, b = (random(5, 5, dtype=dtype, seed=seed).detach() for seed in (0, 1))
    wanted = a.double().cpu() @ b.double().cpu()
    found = torch.mm(a, b, out_dtype=torch.float32)
    assert found.dtype == torch.float32
    assert_near([found.cpu().double()], [wanted], 1e-5)
    total = torch.ones(5, 5, device="cuda")
    torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    assert_near([total.cpu().double()], [wanted + 1], 1e-5)


def test_found_inf_holds_a_fused_optimizer_back():
    weight = torch.nn.Parameter(torch.ones(3, device="cuda"))
    optimizer = torch.optim.AdamW([weight], fused=True)
    weight.grad = torch.ones_like(weight)
    optimizer.found_inf = torch.ones((), device="cuda")
    optimizer.step()
    assert weight.tolist() == [1.0] * 3
    optimizer.found_inf = torch.zeros((), device="cuda")
    optimizer.step()
    assert (weight < 1).all()


def test_a_scaler_skips_what_overflows():
    weight = torch.nn.Parameter(torch.ones(3, device="cuda"))
    optimizer, scaler = torch.optim.SGD([weight], lr=0.1), torch.amp.GradScaler("cuda")
    scaler.scale((weight * torch.inf).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert weight.tolist() == [1.0] * 3
    assert scaler.get_scale() == 2.0**15

from dataclasses import replace

import pytest
import torch
from kdcore_losses import CrossEntropy, ForwardKL
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kdcore.models.head import chunk_size
from kdcore.models.logit_transforms import Scale, SoftCap
from kdcore.objective.chunked_loss import ChunkedLoss, ChunkedLossInputs
from kdcore.objective.losses import values_of

TOKENS, HIDDEN, HEAD, VOCABULARY = 23, 8, 41, 37
SEEN = torch.tensor([0, 2, 3, 5, 7, 11, 12, 13, 17, 19, 22])


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def parts(dtype=torch.float64, bias=True):
    """States, head and bias that want gradients."""
    made = [drawn(TOKENS, HIDDEN, dtype=dtype), drawn(HEAD, HIDDEN, seed=1, dtype=dtype)]
    made.append(drawn(HEAD, seed=2, dtype=dtype) if bias else None)
    return [None if tensor is None else tensor.requires_grad_() for tensor in made]


def teacher_logits(dtype=torch.float64):
    return drawn(TOKENS, VOCABULARY, seed=3, dtype=dtype)


def labels():
    return torch.arange(TOKENS) % VOCABULARY


def weights(dtype=torch.float64):
    """Two terms; the second one sees every other token."""
    return torch.stack([torch.ones(len(SEEN)) / 11, (torch.arange(len(SEEN)) % 2) / 5]).to(dtype)


def work(chunk=4, values=None, positions=SEEN, dtype=torch.float64):
    logits = teacher_logits(dtype)
    return ChunkedLossInputs(
        positions=positions,
        labels=labels()[positions],
        weights=weights(dtype)[:, : len(positions)],
        values=values or values_of([CrossEntropy(), ForwardKL(temperature=2.0)]),
        teacher=lambda at: logits[at],
        vocabulary=VOCABULARY,
        chunk=chunk,
    )


def whole(states, weight, bias, bend=lambda logits: logits):
    """The same by full logits."""
    logits = bend(F.linear(states, weight, bias)[SEEN, :VOCABULARY])
    p, q = teacher_logits()[SEEN] / 2, logits / 2
    kl = 4 * F.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="none")
    each = [F.cross_entropy(logits, labels()[SEEN], reduction="none"), kl.sum(-1)]
    return (torch.stack(each) * weights()).sum(1)


class Products(TorchDispatchMode):
    """Counts multiplications in place."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.mul_.Tensor
        return func(*args, **(kwargs or {}))


def test_gradients_of_a_loss_that_nothing_scales_are_not_multiplied():
    made = []
    for scaled, products in ((True, 3), (False, 0)):
        mine = parts()
        total = ChunkedLoss.apply(*mine, mine[1], replace(work(), scaled=scaled))
        with Products() as counted:
            total.backward()
        assert counted.count == products
        made.append([each.grad for each in mine])
    assert all(map(torch.equal, *made))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk", [1, 4, 11, 1000])
def test_gradients_are_those_of_full_logits(chunk, bias):
    mine, theirs = parts(bias=bias), parts(bias=bias)
    some = work(chunk)
    total = ChunkedLoss.apply(*mine, mine[1], some)
    total.backward()
    expected = whole(*theirs)
    expected.sum().backward()
    torch.testing.assert_close(some.sums, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(total, expected.sum(), rtol=1e-12, atol=1e-12)
    for found, exact in zip(mine, theirs, strict=True):
        if found is not None:
            torch.testing.assert_close(found.grad, exact.grad, rtol=1e-12, atol=1e-12)
    assert not mine[1].grad[VOCABULARY:].any()


def test_no_more_than_a_chunk_of_logits_exists():
    seen, inner = [], values_of([CrossEntropy(), ForwardKL()])

    def values(student, teacher, labels, weights, prepared=()):
        seen.append(len(student))
        assert len(student) == len(teacher) == len(labels) == weights.shape[1]
        return inner(student, teacher, labels, weights)

    ChunkedLoss.apply(*parts(), parts()[1], work(4, values))
    assert seen == [4, 4, 3]


def test_without_a_head_the_states_are_the_logits():
    logits = drawn(TOKENS, HEAD).requires_grad_()
    ChunkedLoss.apply(logits, None, None, None, work()).backward()
    exact = drawn(TOKENS, HEAD).requires_grad_()
    whole(exact, torch.eye(HEAD, dtype=torch.float64), None).sum().backward()
    torch.testing.assert_close(logits.grad, exact.grad, rtol=1e-12, atol=1e-12)
    assert not logits.grad[:, VOCABULARY:].any()


@pytest.mark.parametrize("frozen", [[0], [1], [2], [1, 2], [0, 2]])
def test_what_is_frozen_gets_no_gradient(frozen):
    mine = parts()
    for n in frozen:
        mine[n].requires_grad_(False)
    ChunkedLoss.apply(*mine, mine[1], work()).backward()
    assert [n for n in range(3) if mine[n].grad is None] == frozen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_loss_scaler_scales_and_unscales(dtype):
    """`grad_output` is multiplied: a power of two changes nothing but the exponent."""
    plain, scaled = parts(torch.float32), parts(torch.float32)
    for tensors, factor in ((plain, 1.0), (scaled, 1024.0)):
        computed = tensors[1].detach().to(dtype)
        loss = ChunkedLoss.apply(*tensors, computed, work(dtype=torch.float32))
        (loss * factor).backward()
    for one, other in zip(plain, scaled, strict=True):
        assert torch.equal(one.grad * 1024, other.grad)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD([tensor.requires_grad_() for tensor in parts(torch.float32)], 1.0)
    mine = optimizer.param_groups[0]["params"]
    loss = ChunkedLoss.apply(*mine, mine[1].detach().to(dtype), work(dtype=torch.float32))
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    assert all(torch.equal(one.grad, p.grad) for one, p in zip(plain, mine, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_states_get_half_gradients_and_masters_full_ones(dtype):
    exact, states = parts(), parts()[0].detach().to(dtype).requires_grad_()
    weight, bias = (tensor.detach().float().requires_grad_() for tensor in exact[1:])
    ChunkedLoss.apply(
        states, weight, bias, weight.detach().to(dtype), work(dtype=torch.float32)
    ).backward()
    whole(*exact).sum().backward()
    assert [states.grad.dtype, weight.grad.dtype, bias.grad.dtype] == [dtype, *[torch.float32] * 2]
    for found, true in zip((states, weight, bias), exact, strict=True):
        assert float((found.grad - true.grad).norm() / true.grad.norm()) < 0.02


def test_without_positions_everything_is_zero():
    mine = parts()
    some = work(positions=SEEN[:0])
    total = ChunkedLoss.apply(*mine, mine[1], some)
    total.backward()
    assert float(total.detach()) == 0
    assert some.sums.tolist() == [0, 0]
    assert all(not tensor.grad.any() for tensor in mine)


def test_a_second_backward_says_so():
    mine = parts()
    total = ChunkedLoss.apply(*mine, mine[1], work())
    total.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="can be taken once"):
        total.backward()


def test_a_gradient_of_the_gradient_says_so():
    mine = parts()
    total = ChunkedLoss.apply(*mine, mine[1], work())
    with pytest.raises(NotImplementedError, match="no gradient of its gradient"):
        torch.autograd.grad(total, mine[0], create_graph=True)


def test_chunks_are_of_one_size_whatever_the_step():
    cpu = torch.device("cpu")
    assert chunk_size(151_665, cpu) == 128
    assert chunk_size(151_665, torch.device("cuda")) == 1024
    assert chunk_size(256, cpu) == 4096
    assert chunk_size(10_000_000, cpu) == 16


def test_chunks_are_smaller_where_memory_is_short():
    cuda = torch.device("cuda")
    assert chunk_size(151_665, cuda, free=80 * 2**30) == 1024
    assert chunk_size(151_665, cuda, free=2**30) == 64
    assert chunk_size(151_665, cuda, free=0) == 16


@pytest.mark.parametrize("bend", [SoftCap(0.7), Scale(1.7)])
def test_gradients_go_through_what_a_model_does_to_its_logits(bend):
    """By hand, against autograd over full logits."""
    mine, theirs = parts(), parts()
    some = replace(work(), bend=bend)
    ChunkedLoss.apply(*mine, mine[1], some).backward()
    expected = whole(*theirs, bend)
    expected.sum().backward()
    torch.testing.assert_close(some.sums, expected.detach(), rtol=1e-12, atol=1e-12)
    for found, exact in zip(mine, theirs, strict=True):
        torch.testing.assert_close(found.grad, exact.grad, rtol=1e-12, atol=1e-12)


def test_a_buffer_is_not_seen_by_the_next_chunk():
    """Each chunk has its own logits, the ragged last one too."""
    seen = []

    def values(student, teacher, labels, weights, prepared=()):
        seen.append(student.clone())
        return weights.sum(1), torch.zeros_like(student)

    mine = parts()
    ChunkedLoss.apply(*mine, mine[1], work(values=values))
    full = F.linear(*mine)[SEEN, :VOCABULARY]
    torch.testing.assert_close(torch.cat(seen), full.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.1, 5.0])
@pytest.mark.parametrize("loss", [CrossEntropy(), ForwardKL()])
@pytest.mark.parametrize("tokens", [1, 16_384, 65_536])
def test_half_types_keep_the_gradient_of_a_large_step(dtype, spread, loss, tokens):
    """Of a vocabulary of 151,665 and so many tokens, flat and peaked, against float64."""
    rows, hidden, vocabulary = 8, 16, 151_665
    states = drawn(rows, hidden, dtype=dtype).float()
    weight = (drawn(vocabulary, hidden, seed=1) * spread / 4).to(dtype).float()
    teacher = drawn(rows, vocabulary, seed=2, dtype=torch.float32) * spread
    target = 18_000 * torch.arange(rows)

    def gradients(kind, device, computed):
        made = [each.to(device, kind).requires_grad_() for each in (states, weight)]
        given = ChunkedLossInputs(
            positions=torch.arange(rows, device=device),
            labels=target.to(device),
            weights=torch.full((1, rows), 1 / tokens, dtype=kind, device=device),
            values=values_of([loss]),
            teacher=lambda at: teacher.to(device, kind)[at],
            vocabulary=vocabulary,
            chunk=4,
        )
        scale = 1.0 if kind == torch.float64 else 2.0**14  # as a loss scaler has it
        ChunkedLoss.apply(*made, None, made[1].detach().to(computed), given).mul(scale).backward()
        return [each.grad.cpu().double() / scale for each in made]

    found = gradients(torch.float32, "cuda", dtype)
    wanted = gradients(torch.float64, "cpu", torch.float64)
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() <= 0.01 * other.norm()

"""Flash and memory-efficient attention, each one kernel forward and one backward, with their rules.

Registered under the names of torch's own operators, so that `scaled_dot_product_attention` and
`varlen_attn` reach them as on a GPU. Gradients are by formula: autograd is off inside a kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fake_cuda.products import HALF

_kernels = torch.library.Library("aten", "IMPL")


def register() -> None:
    """For the key CUDA."""
    for kernel in (
        _scaled_dot_product_flash_attention,
        _scaled_dot_product_flash_attention_backward,
        _scaled_dot_product_efficient_attention,
        _scaled_dot_product_efficient_attention_backward,
        _flash_attention_forward,
        _flash_attention_backward,
    ):
        _kernels.impl(kernel.__name__, kernel, "CUDA")


def _scores(
    query: Tensor, key: Tensor, scale: float | None, bias: Tensor | None, window: tuple[int, int]
) -> Tensor:
    """Probabilities [..., heads, time, time]; a side of the window that is negative has no end."""
    size = query.shape[-1] ** -0.5 if scale is None else scale
    scores = query @ key.transpose(-1, -2) * size
    if bias is not None:
        scores = scores + bias
    back = torch.arange(scores.shape[-2])[:, None] - torch.arange(scores.shape[-1])
    left, right = window
    hidden = (back > left) & (left >= 0) | (back < -right) & (right >= 0)
    # A query that sees nothing gets zeros, as from the kernels.
    return scores.masked_fill(hidden, float("-inf")).softmax(-1).nan_to_num(0.0)


def _alike(query: Tensor, other: Tensor) -> Tensor:
    """Keys or values on the host, in float32, repeated for each query head of their group."""
    return other.cpu().float().repeat_interleave(query.shape[-3] // other.shape[-3], dim=-3)


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    bias: Tensor | None = None,
    window: tuple[int, int] = (-1, -1),
) -> Tensor:
    """[..., heads, time, D] on any device -> the same on the host."""
    keys, values = _alike(query, key), _alike(query, value)
    found = _scores(query.cpu().float(), keys, scale, bias, window) @ values
    return found.to(query.dtype)


def _backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    bias: Tensor | None = None,
    window: tuple[int, int] = (-1, -1),
) -> list[Tensor]:
    """Gradients in query, key and value, on the host."""
    some, keys, values = query.cpu().float(), _alike(query, key), _alike(query, value)
    chances, to_out = _scores(some, keys, scale, bias, window), gradient.cpu().float()
    to_chances = to_out @ values.transpose(-1, -2)
    size = query.shape[-1] ** -0.5 if scale is None else scale
    to_scores = chances * (to_chances - (to_chances * chances).sum(-1, keepdim=True)) * size
    to_key, to_value = to_scores.transpose(-1, -2) @ some, chances.transpose(-1, -2) @ to_out
    grouped = [
        grad.unflatten(-3, (like.shape[-3], -1)).sum(-3)
        for grad, like in zip(
            (to_scores @ keys, to_key, to_value), (query, key, value), strict=True
        )
    ]
    return [grad.to(like.dtype) for grad, like in zip(grouped, (query, key, value), strict=True)]


def _heads_inside(found: Tensor, like: Tensor) -> Tensor:
    """On the device, heads beside each other: kernels write [rows, time, heads, D]."""
    return found.transpose(1, 2).contiguous().to(like.device).transpose(1, 2)


def _window(is_causal: bool) -> tuple[int, int]:
    return (-1, 0) if is_causal else (-1, -1)


def _unused(like: Tensor, count: int) -> list[Tensor]:
    return [torch.empty(0, device=like.device) for _ in range(count)]


def _scaled_dot_product_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Any, ...]:
    _check_flash(query, key, value)
    found = _heads_inside(_forward(query, key, value, scale, None, _window(is_causal)), query)
    lengths = (query.shape[2], key.shape[2])
    return (found, *_unused(query, 3), *lengths, *_unused(query, 3))


def _scaled_dot_product_flash_attention_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    *random: Tensor,
    scale: float | None = None,
) -> tuple[Tensor, ...]:
    each = _backward(gradient, query, key, value, scale, None, _window(is_causal))
    return tuple(_heads_inside(grad, query) for grad in each)


def _scaled_dot_product_efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, ...]:
    if query.shape[1] != key.shape[1]:
        raise RuntimeError("memory-efficient attention knows no grouped queries")
    held = None if bias is None else bias.cpu().float()
    found = _forward(query, key, value, scale, held, _window(is_causal))
    return (_heads_inside(found, query), *_unused(query, 3))


def _scaled_dot_product_efficient_attention_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
    philox_seed: Tensor,
    philox_offset: Tensor,
    dropout_p: float,
    grad_input_mask: list[bool],
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor | None, ...]:
    held = None if bias is None or not bias.numel() else bias.cpu().float()
    each = _backward(gradient, query, key, value, scale, held, _window(is_causal))
    return (*(_heads_inside(grad, query) for grad in each), None)


def _check_flash(*tensors: Tensor) -> None:
    for each in tensors:
        if each.dtype not in HALF or each.dtype != tensors[0].dtype:
            raise RuntimeError("FlashAttention only supports fp16 and bf16, the same for all")
        if each.stride(-1) != 1:
            raise RuntimeError("Input tensor must have contiguous last dimension")
        if each.shape[-1] % 8 or each.shape[-1] > 256:
            raise RuntimeError("FlashAttention takes head sizes of at most 256, multiples of 8")


def _pieces(starts: Tensor) -> Iterator[slice]:
    """Where each piece of packed rows lies."""
    borders = starts.tolist()
    return (slice(*each) for each in pairwise(borders))


def _flash_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    **of_caches: Any,
) -> tuple[Tensor, ...]:
    """Queries, keys and values [n, heads, D] of pieces that lie end to end."""
    _check_flash(query, key, value)
    for starts in (cum_seq_q, cum_seq_k):
        if starts.dtype != torch.int32 or not starts.is_cuda or not starts.is_contiguous():
            raise RuntimeError("cu_seqlens must be contiguous int32 on the device")
    window = (-1, 0) if is_causal else (window_size_left or 0, window_size_right or 0)
    found = [
        _forward(*(each[at].transpose(0, 1) for each in (query, key, value)), scale, None, window)
        for at in _pieces(cum_seq_q)
    ]
    out = torch.cat(found, dim=1).transpose(0, 1).contiguous().to(query.device)
    return (out, *_unused(query, 4))


def _flash_attention_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    rng_state: Tensor,
    unused: Tensor,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
) -> tuple[Tensor, ...]:
    window = (-1, 0) if is_causal else (window_size_left or 0, window_size_right or 0)
    each = [
        _backward(
            *(x[at].transpose(0, 1) for x in (gradient, query, key, value)), scale, None, window
        )
        for at in _pieces(cum_seq_q)
    ]
    joined = (torch.cat(some, dim=1) for some in zip(*each, strict=True))
    return tuple(grad.transpose(0, 1).contiguous().to(query.device) for grad in joined)

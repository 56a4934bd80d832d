"""The head and its losses on a GPU, in several ways: target G11, with a teacher of 7B's width.

Variants and losses are those of speed/head.py. Milliseconds forward and backward, medians after
what is compiled was compiled; GiB beyond what states and heads take.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from head_variants import LOSSES, VARIANTS, Given
from torch import Tensor
from world import GIB, World, synchronise, target

from kdcore.models.head import LogitsGradient, chunk_size, logits_of

ROUNDS = 5
TEACHER_HIDDEN = 3584
WAYS = [
    ("kdcore", "kl", 8192),  # G11 first
    ("products only", "kl", 8192),
    ("naive", "kl", 8192),
    ("uncompiled", "kl", 8192),
    ("by hand", "kl", 8192),
    ("kdcore", "skew-reverse-kl", 8192),
    ("naive", "skew-reverse-kl", 8192),
    ("kdcore", "jsd", 8192),
    ("naive", "jsd", 8192),
    ("rho", "ce", 8192),
    ("naive", "ce", 8192),
    ("kdcore", "kl", 2048),
    ("naive", "kl", 2048),
    ("kdcore", "kl", 512),
    ("naive", "kl", 512),
]


class OnGpu(Given):
    """States and heads on the device, of these sizes."""

    def __init__(self, world: World, tokens: int) -> None:
        shape, device = world.shape("qwen-0.5b"), world.device
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        teacher = 48 if world.rehearse else TEACHER_HIDDEN
        torch.manual_seed(0)

        def drawn(*size: int, scale: float = 1.0) -> Tensor:
            return torch.randn(*size, device=device, dtype=dtype) * scale

        self.states = drawn(tokens, shape.hidden).requires_grad_()
        self.weight = drawn(shape.vocabulary, shape.hidden, scale=0.05).requires_grad_()
        self.teacher_states = drawn(tokens, teacher)
        self.teacher_weight = drawn(shape.vocabulary, teacher, scale=0.05)
        self.labels = torch.randint(shape.vocabulary, (tokens,), device=device)
        self.reference = torch.rand(tokens, device=device) * 12

    @property
    def chunk(self) -> int:
        """As a run has it with much free memory."""
        return chunk_size(len(self.weight), self.weight.device)

    def teacher(self, rows: Tensor) -> Tensor:
        """A chunk of its logits."""
        return logits_of(self.teacher_states[rows], self.teacher_weight)


def products_only(given: Given, loss: str) -> Tensor:
    """As there, with sums in float32, as the engine has them for halves."""
    states, weight = given.states.detach(), given.weight.detach()
    to_states = torch.zeros_like(states, dtype=torch.float32)
    to_weight = torch.zeros_like(weight, dtype=torch.float32)
    for rows in torch.arange(len(states)).split(given.chunk):
        gradient = LogitsGradient(logits_of(states[rows], weight), weight.dtype)
        given.teacher(rows)
        to_states[rows] = gradient.to_states(weight)
        gradient.add_to_weight(to_weight, states[rows])
    return torch.zeros(())


def measure(world: World) -> dict[str, Any]:
    """The table, and what G11 asks for."""
    assert set(LOSSES) >= {loss for _, loss, _ in WAYS}
    table = {}
    for way, loss, tokens in WAYS[:4] if world.rehearse else WAYS:
        some = tokens // 64 if world.rehearse else tokens
        try:
            with torch.device(world.device):  # the variants make tensors without saying where
                table[f"{way}, {loss}, {tokens:,}"] = _once(world, way, loss, some)
        except (RuntimeError, TypeError) as error:  # out of memory too: the others still tell
            table[f"{way}, {loss}, {tokens:,}"] = {"error": str(error).splitlines()[0]}
    return {"table": table, "targets": _targets(world, table)}


def _once(world: World, way: str, loss: str, tokens: int) -> dict[str, float]:
    given = OnGpu(world, tokens)
    run, on_gpu = {**VARIANTS, "products only": products_only}[way], world.device.type == "cuda"
    run(given, loss)  # compiles, and finds its kernels
    taken, seconds, value = 0.0, [], torch.zeros(())
    for _ in range(2 if world.rehearse else ROUNDS):
        given.states.grad = given.weight.grad = None
        synchronise()
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        began = time.perf_counter()
        value = run(given, loss)
        synchronise()
        seconds.append(time.perf_counter() - began)
        if on_gpu:
            taken = (torch.cuda.max_memory_allocated() - before) / GIB
    return {"ms": 1e3 * statistics.median(seconds), "GiB": taken, "loss": float(value)}


def _targets(world: World, table: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    ours = table["kdcore, kl, 8,192"]
    lines = [
        ("G11: the head at 8,192 tokens, forward KL, a teacher of 7B's width, ms", 30.0, "ms"),
        ("G11: its memory beyond states and heads, GB", 4.0, "GiB"),
    ]
    found = []
    for what, most, key in lines:
        measured = ours.get(key)
        if measured is not None and key == "GiB":
            measured *= GIB / 1e9
        found.append(target(world, what, measured, most))
    return found

"""One head and its losses, forward and backward, in several ways; part of speed/head.py."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from kdcore_losses import CrossEntropy, ForwardKL, JensenShannon, SkewReverseKL
from torch import Tensor
from torch.nn import functional as F

from kdcore.models.head import (
    LogitsGradient,
    chunk_size,
    logits_of,
    nll_from_logits,
)
from kdcore.objective.chunked_loss import ChunkedLoss, ChunkedLossInputs, Values
from kdcore.objective.compiled_losses import compiled_values_of
from kdcore.objective.losses import values_of

HIDDEN, TEACHER_HIDDEN, VOCABULARY = 896, 1536, 151_936  # Qwen2.5-0.5B, and a teacher of 1.5B
KEPT = 0.3


LOSSES = {
    "ce": CrossEntropy,
    "kl": ForwardKL,
    "skew-reverse-kl": SkewReverseKL,
    "jsd": JensenShannon,
}


class Given:
    """States and heads; every variant gets the same ones."""

    def __init__(self, tokens: int, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.states = torch.randn(tokens, HIDDEN).to(dtype).requires_grad_()
        self.weight = torch.empty(VOCABULARY, HIDDEN, dtype=dtype)
        self.teacher_states = torch.randn(tokens, TEACHER_HIDDEN).to(dtype)
        self.teacher_weight = torch.empty(VOCABULARY, TEACHER_HIDDEN, dtype=dtype)
        for head in (self.weight, self.teacher_weight):
            for some in head.split(8192):  # drawn piece by piece, so that the peak stays low
                some.copy_(torch.randn(some.shape) * 0.05)
        self.weight.requires_grad_()
        self.labels = torch.randint(VOCABULARY, (tokens,))
        self.reference = torch.rand(tokens) * 12

    @property
    def chunk(self) -> int:
        return chunk_size(VOCABULARY, torch.device("cpu"))

    def teacher(self, rows: Tensor) -> Tensor:
        return logits_of(self.teacher_states[rows], self.teacher_weight)


def naive(given: Given, loss: str) -> Tensor:
    """Full logits, and the textbook's formula by autograd."""
    student = F.linear(given.states, given.weight).float()
    if loss == "ce":
        return _naive_rho(given, student)
    with torch.no_grad():
        teacher = F.linear(given.teacher_states, given.teacher_weight).float()
    q, p = student.log_softmax(-1), teacher.log_softmax(-1)
    if loss == "jsd":
        mixed = (0.5 * q.exp() + 0.5 * p.exp()).log()
        each = 0.5 * (p.exp() * (p - mixed)).sum(-1) + 0.5 * (q.exp() * (q - mixed)).sum(-1)
    elif loss == "skew-reverse-kl":
        mixed = (0.1 * q.exp() + 0.9 * p.exp()).log()
        each = (q.exp() * (q - mixed)).sum(-1)
    else:
        each = (p.exp() * (p - q)).sum(-1)
    value = each.mean()
    value.backward()
    return value.detach()


def _naive_rho(given: Given, student: Tensor) -> Tensor:
    each = F.cross_entropy(student, given.labels, reduction="none")
    kept = (each.detach() - given.reference).topk(_kept(given)).indices
    value = each[kept].mean()
    value.backward()
    return value.detach()


def products_only(given: Given, loss: str) -> Tensor:
    """The matrix products of the chunked way, and nothing between them."""
    to_states, to_weight = torch.zeros_like(given.states), torch.zeros_like(given.weight)
    with torch.no_grad():
        for rows in torch.arange(len(given.states)).split(given.chunk):
            some = given.states[rows]
            gradient = logits_of(some, given.weight)
            given.teacher(rows)
            factor = LogitsGradient(gradient, given.weight.dtype)
            to_states[rows] = factor.to_states(given.weight)
            factor.add_to_weight(to_weight, some)
    return torch.zeros(())


@lru_cache
def _compiled(loss: str, chunk: int) -> Values:
    """Once for a process, as once for a run."""
    return compiled_values_of([LOSSES[loss]()], chunk)


def kdcore(given: Given, loss: str) -> Tensor:
    """The engine's function with the loss compiled."""
    return _chunked(given, _compiled(loss, given.chunk))


def uncompiled(given: Given, loss: str) -> Tensor:
    """The engine's function where no compiler is."""
    return _chunked(given, values_of([LOSSES[loss]()]))


def by_hand(given: Given, loss: str) -> Tensor:
    """The engine's function, with a gradient written down instead of made by autograd."""
    return _chunked(given, torch.compile(_kl_and_gradient, dynamic=False))


def _kl_and_gradient(
    student: Tensor, teacher: Tensor, labels: Tensor, weights: Tensor, prepared: object
) -> tuple[Tensor, Tensor]:
    q, p = student.log_softmax(-1), teacher.log_softmax(-1)
    sums = ((p.exp() * (p - q)).sum(-1) * weights[0]).sum()[None]
    return sums, (q.exp() - p.exp()) * weights[0][:, None]


def rho(given: Given, loss: str) -> Tensor:
    """Score all in chunks without gradient, then project and train the kept tokens only."""
    states, weight = given.states.detach(), given.weight.detach()
    asked: Any = SimpleNamespace(vocabulary=VOCABULARY, labels=given.labels)
    nll = nll_from_logits(lambda rows: logits_of(states[rows], weight), asked)
    scores = nll(torch.arange(len(states)), given.labels) - given.reference
    kept = scores.topk(_kept(given)).indices.sort().values
    return _chunked(given, _compiled("ce", given.chunk), kept)


def _chunked(given: Given, values: Values, rows: Tensor | None = None) -> Tensor:
    """All rows with the teacher, or these without."""
    trained = torch.arange(len(given.states)) if rows is None else rows
    work = ChunkedLossInputs(
        positions=trained,
        labels=given.labels[trained],
        weights=torch.full((1, len(trained)), 1 / len(trained)),
        values=values,
        teacher=None if rows is not None else given.teacher,  # type: ignore[arg-type]
        vocabulary=VOCABULARY,
        chunk=given.chunk,
    )
    value: Tensor = ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        given.states, given.weight, None, given.weight.detach(), work
    )
    value.backward()  # type: ignore[no-untyped-call]
    return value.detach()


def _kept(given: Given) -> int:
    return round(KEPT * len(given.states))


VARIANTS: dict[str, Callable[[Given, str], Tensor]] = {
    "naive": naive,
    "products only": products_only,
    "kdcore": kdcore,
    "uncompiled": uncompiled,
    "by hand": by_hand,
    "rho": rho,
}
WARMED = {"kdcore", "by hand", "rho"}  # what is compiled at its first chunk


def once(variant: str, loss: str, tokens: int, dtype: str) -> dict[str, float]:
    """CPU seconds, and by how many GiB the resident set grew.

    What is compiled is compiled before, on a chunk.
    """
    torch.set_num_threads(1)
    run, kind = VARIANTS[variant], getattr(torch, dtype)
    if variant in WARMED:
        few = chunk_size(VOCABULARY, torch.device("cpu"))
        run(Given(few if variant != "rho" else 4 * few, kind), loss)
    given = Given(tokens, kind)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before, start = _resident("VmRSS"), time.process_time()
    value = run(given, loss)
    seconds = time.process_time() - start
    grown = (_resident("VmHWM") - before) / 2**30
    return {"seconds": seconds, "memory": grown, "value": float(value)}


def _resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name)) * 1024

"""The spans of a batch that both sides predict, and the teacher's outputs in its own ids."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdcore import (
    Batch,
    LogitsFn,
    OwnVocabulary,
    RetokenizedBatch,
    Spans,
    Teacher,
    on_host,
    read_outputs,
)

_AT_ONCE = 512  # positions whose logits are in memory at once


def sent(array: np.ndarray, device: torch.device) -> Tensor:
    """The values as a tensor on the device, copied without waiting."""
    made = torch.from_numpy(array)
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made


def predicted(batch: Batch, made: RetokenizedBatch) -> Spans:
    """The spans whose first token is predicted on both sides; the first of a piece is not."""
    spans = made.spans
    ours, theirs = on_host(batch).position, on_host(made.batch).position
    return spans.where((ours[spans.first] > 0) & (theirs[spans.other_first] > 0))


def own_vocabulary(
    teacher: Teacher, batch: Batch, made: RetokenizedBatch, shared: tuple[Tensor, Tensor]
) -> OwnVocabulary:
    """The teacher's outputs for the spans whose tokens are all trained."""
    valid, device = on_host(batch).valid, batch.labels.device
    spans = _trained(predicted(batch, made), valid, batch.labels.numel())
    span = np.full(batch.labels.numel(), -1)
    lengths = spans.end - spans.first
    span[ranges(spans.first - 1, lengths)] = np.repeat(np.arange(len(lengths)), lengths)
    place = np.zeros(batch.labels.numel(), np.int64)
    place[spans.first - 1] = spans.other_first - 1
    places, held = sent(place, device), list[LogitsFn]()
    if teacher.is_sharded():  # all processes read it now, also those that need nothing of it
        held.append(read_outputs(teacher, made.batch))  # type: ignore[arg-type]

    def at(positions: Tensor) -> Tensor:
        if not held:
            held.append(read_outputs(teacher, made.batch))  # type: ignore[arg-type]
        return held[0](positions)

    def nll() -> Tensor:
        found = torch.zeros(batch.labels.numel(), 2, device=device)
        found[sent(spans.first - 1, device)] = _of_spans(at, made.batch, spans)
        return found[batch.valid]

    return OwnVocabulary(
        spans=torch.from_numpy(span[valid]),
        logits=lambda positions: at(places[positions]),
        nll=nll,
        shared=shared,
    )


def ranges(first: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The concatenated ranges first[i], ..., first[i] + lengths[i] - 1."""
    before = np.cumsum(lengths) - lengths
    found: np.ndarray = np.repeat(first - before, lengths) + np.arange(lengths.sum())
    return found


def _trained(spans: Spans, valid: np.ndarray, positions: int) -> Spans:
    """The spans whose tokens are all predicted at valid positions."""
    is_valid = np.zeros(positions + 1, np.int64)
    is_valid[valid + 1] = 1
    count = np.cumsum(is_valid)
    return spans.where(count[spans.end - 1] - count[spans.first - 1] == spans.end - spans.first)


def _of_spans(at: LogitsFn, batch: Batch, spans: Spans) -> Tensor:
    """The teacher's nll of each span's first token, and of its later ones [spans, 2]."""
    device, lengths = batch.labels.device, spans.other_end - spans.other_first
    tokens = sent(ranges(spans.other_first, lengths), device)
    labels = batch.input_ids.flatten()[tokens]
    pieces = (torch.split(each, _AT_ONCE) for each in (tokens - 1, labels))
    each = [
        F.cross_entropy(at(some), label, reduction="none")
        for some, label in zip(*pieces, strict=True)
    ]
    nll, first = torch.cat(each), np.cumsum(lengths) - lengths
    span = sent(np.repeat(np.arange(len(lengths)), lengths), device)
    firsts = nll[sent(first, device)]
    total = torch.zeros_like(firsts).index_add_(0, span, nll)
    return torch.stack([firsts, total - firsts], 1)

"""Rows, batches and logits as they pass between engine and plugins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from torch import Tensor

from kdcore.data.columns import BatchColumns

if TYPE_CHECKING:
    import numpy as np

LogitsFn = Callable[["Tensor"], "Tensor"]
"""Flat positions [n] -> logits [n, V] of a batch that a teacher has read, without gradient."""

TeacherOutputs = Callable[["Tensor"], "Tensor | SparseLogits"]
"""The same of any teacher: of one that knows some ids only, a `SparseLogits`."""

Row = Mapping[str, Any]
"""`input_ids`, and where the data knows them `labels` (unshifted, -100: not trained), `document`
and `offset`, and `columns`: name -> text or number, of the row, or one such mapping for each of its
documents, in the order in which they begin."""

OLD_LOG_PROBS = "old_log_probs"
"""The key of written rows for what each token had as it was drawn, NaN where it is not known."""

Rows = Sequence[Row] | Iterable[Row]
"""A sequence of rows, or an iterable of them where the data is streamed."""


@dataclass(frozen=True, eq=False)
class Split:
    """What a batch was cut from."""

    name: str
    fingerprint: str  # of its tokens and their order
    lengths: np.ndarray  # [documents] in tokens; empty where the data is streamed
    written: bool = False  # rows that were written while training: they are seen once


@dataclass(frozen=True, eq=False)
class Packing:
    """The isolated pieces of rows, end to end: padding is left out."""

    real: Tensor | None  # [n]: the flat positions that are no padding; None: all of them
    lengths: tuple[int, ...]  # of the pieces
    starts: Tensor  # int32 [pieces + 1]: where each begins among these n tokens, and n
    longest: int  # tokens of the longest piece

    def is_whole(self, rows: int) -> bool:
        """Whether so many rows are one piece each, without padding."""
        return self.real is None and len(self.lengths) == rows


@dataclass(frozen=True, eq=False)
class OnHost:
    """What the host knew before it sent a batch to the device: reading it waits for nothing."""

    input_ids: np.ndarray  # these four [rows * time]
    position: np.ndarray
    document: np.ndarray
    offset: np.ndarray
    valid: np.ndarray  # [n]


@dataclass(frozen=True, eq=False)
class Batch:
    """One micro-batch on the device. The student and every teacher see exactly this.

    All but `labels` are [rows, time]. `labels` is flat, [rows * time]: the id that the position
    predicts, and -100 where it predicts nothing (padding, prompts, the end of a document). Flat
    positions count through the rows.
    """

    input_ids: Tensor  # int64
    position_ids: Tensor  # int64, from 0 in each document
    attention_mask: Tensor | None  # None where rows are packed: position_ids isolate the documents
    document: Tensor  # the token's document in the split, -1 on padding
    offset: Tensor  # the token's index in its document, -1 on padding
    labels: Tensor  # int64 [rows * time]
    valid: Tensor  # [n]: the flat positions whose label is not -100, in order
    vocabulary: int  # logits are cut to this many ids on all sides
    split: Split  # which split the rows are of
    packing: Packing | None = None  # None: position_ids and attention_mask tell what is isolated
    columns: BatchColumns | None = None  # of its documents; None: they are data without columns
    on_host: OnHost | None = field(default=None, init=False)  # None in what `replace` made of it

    def known(self, on_host: OnHost) -> Batch:
        """The batch itself, which knows this from here on."""
        object.__setattr__(self, "on_host", on_host)
        return self


class SparseLogits(NamedTuple):
    """What a teacher says of some ids at each position, and of all others together."""

    ids: Tensor  # int64 [n, k], no id twice at a position, fewer than there are
    log_probabilities: Tensor  # [n, k + 1] at temperature 1; the last one is of all other ids
    tempered: Mapping[float, Tensor] | None = None  # log-mass of the others at other T
    """Temperature T -> [n]: T times the log of the sum of the others' p^(1/T). None: not told."""


class GappedLogits(SparseLogits):
    """The same where ids may be -1: no id, behind those that are, whatever mass is given."""


class Parts(NamedTuple):
    """What several teachers say, over each of which a loss is taken by itself."""

    weights: tuple[float, ...]  # of the losses' sum
    each: tuple[Tensor | SparseLogits, ...]


StatesFn = Callable[["Tensor"], "Sequence[Tensor]"]
"""Flat positions [n] -> the hidden states there of each layer that was asked for [n, H]."""


@dataclass(frozen=True, eq=False)
class OwnVocabulary:
    """What a teacher says of a batch in its own ids, which need not be the student's.

    `spans` are known without a forward pass; the trunk runs at the first call of `logits` or `nll`.
    A span is the same text to both, one or more tokens on either side.
    """

    spans: Tensor  # int64 [valid]: each valid token's span; -1: in none. A span is contiguous
    logits: LogitsFn  # flat positions [n] whose tokens begin a span -> [n, V_teacher]
    nll: Callable[[], Tensor]
    """[valid, 2], in nats, where a span begins: the teacher's nll of its first token in the span,
    and of its later ones together."""
    shared: tuple[Tensor, Tensor]  # int64 [m]: ids that stand for the same, the student's and its


class TwoVocabularies(NamedTuple):
    """What a teacher says of tokens in the student's ids, and in its own."""

    shared: Tensor | SparseLogits | Parts | None  # None: no loss wants it
    own: Tensor  # [n, V_teacher]


PartOutputs = Callable[["Tensor"], "Tensor | SparseLogits | Parts | TwoVocabularies"]
"""Flat positions [n] -> what a loss learns from."""


class TextSource(Protocol):
    """Where documents come from, as far as rows are made of them: a data component."""

    name: ClassVar[str]
    component_kind: ClassVar[str]
    block: int
    rows: Literal["pack", "chunk", "one"]
    cut: Literal["left", "right", "split"]
    bos: Literal["auto"] | bool
    eos: bool
    special_tokens: Literal["text", "parse"]

    @property
    def fresh_each_epoch(self) -> bool:
        """Whether rows differ from epoch to epoch."""
        ...

    def texts(self, split: str) -> Iterable[str]:
        """The documents of a split, in order; `documents`, where there is one, with columns."""
        ...

    def fingerprint(self) -> str:
        """What the source is, content included."""
        ...


def columns_of(batch: Batch) -> BatchColumns:
    """A batch's. One that was made without has documents of data."""
    if batch.columns is not None:
        return batch.columns
    document = batch.document.cpu().numpy()
    predicts = batch.labels.cpu().numpy().reshape(document.shape) >= 0
    return BatchColumns([{}] * len(document), document, predicts)

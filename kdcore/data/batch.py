"""Rows, batches and logits: the data that engine and plugins exchange."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from torch import Tensor

from kdcore.data.columns import BatchColumns

if TYPE_CHECKING:
    import numpy as np

LogitsFn = Callable[["Tensor"], "Tensor"]
"""Flat positions [n] -> a teacher's logits [n, V] on a batch, without gradient."""

TeacherOutputs = Callable[["Tensor"], "Tensor | SparseLogits"]
"""The same for any teacher; one that covers only some ids returns `SparseLogits`."""

Row = Mapping[str, Any]
"""`input_ids`, and optionally `labels` (unshifted, -100: ignored), `document`, `offset` and
`columns`: name -> text or number, for the row, or a list of such mappings, one per document in the
order in which they begin."""

OLD_LOG_PROBS = "old_log_probs"
"""The key in generated rows for each token's log-probability when drawn; NaN: unknown."""

Rows = Sequence[Row] | Iterable[Row]
"""A sequence of rows, or an iterable of them where the data is streamed."""


@dataclass(frozen=True, eq=False)
class Split:
    """The split that a batch comes from."""

    name: str
    fingerprint: str  # hash of its tokens and their order
    lengths: np.ndarray  # tokens of each document [documents]; empty for streamed data
    written: bool = False  # rows were generated during training, and are seen once


@dataclass(frozen=True, eq=False)
class Packing:
    """The isolated pieces of packed rows, concatenated without padding."""

    real: Tensor | None  # [n]: flat positions without padding; None: all of them
    lengths: tuple[int, ...]  # tokens of each piece
    starts: Tensor  # int32 [pieces + 1]: cumulative lengths, from 0 to n (cu_seqlens)
    longest: int  # tokens of the longest piece

    def is_whole(self, rows: int) -> bool:
        """Whether each of `rows` rows is one piece without padding."""
        return self.real is None and len(self.lengths) == rows


@dataclass(frozen=True, eq=False)
class OnHost:
    """Host copies of a batch from before its transfer: reading them never syncs the device."""

    input_ids: np.ndarray  # [rows * time], like the next three
    position: np.ndarray
    document: np.ndarray
    offset: np.ndarray
    valid: np.ndarray  # [n]


@dataclass(frozen=True, eq=False)
class Batch:
    """One micro-batch on the device. Student and teachers read the same batch.

    Tensors are [rows, time] unless noted. `labels` is flat, [rows * time]: the id that a position
    predicts, or -100 where it predicts nothing (padding, prompts, the end of a document). Flat
    positions index [rows * time].
    """

    input_ids: Tensor  # int64
    position_ids: Tensor  # int64, from 0 in each document
    attention_mask: Tensor | None  # None for packed rows, where position_ids isolate documents
    document: Tensor  # index of the token's document in the split, -1 on padding
    offset: Tensor  # index of the token in its document, -1 on padding
    labels: Tensor  # int64 [rows * time]
    valid: Tensor  # [n]: flat positions with a label other than -100, ascending
    vocabulary: int  # number of shared ids; all logits are cut to it
    split: Split  # the split of its rows
    packing: Packing | None = None  # None: position_ids and attention_mask isolate documents
    columns: BatchColumns | None = None  # those of its documents; None: there are none
    on_host: OnHost | None = field(default=None, init=False)  # None in copies made by `replace`

    def known(self, on_host: OnHost) -> Batch:
        """Attach host copies; returns the batch itself."""
        object.__setattr__(self, "on_host", on_host)
        return self


class SparseLogits(NamedTuple):
    """A teacher's probabilities of some ids at each position, and of all other ids together."""

    ids: Tensor  # int64 [n, k], distinct at each position, k below the vocabulary size
    log_probabilities: Tensor  # [n, k + 1] at temperature 1; the last is that of all others
    tempered: Mapping[float, Tensor] | None = None  # the other ids' bucket at other temperatures
    """Temperature T -> [n]: T * log(sum of p^(1/T) over the other ids). None: unknown."""


class GappedLogits(SparseLogits):
    """The same with -1 as filler after the last id of a position; its mass is ignored."""


class Parts(NamedTuple):
    """Outputs of several teachers; a loss is evaluated against each of them separately."""

    weights: tuple[float, ...]  # of each loss in their sum
    each: tuple[Tensor | SparseLogits, ...]


StatesFn = Callable[["Tensor"], "Sequence[Tensor]"]
"""Flat positions [n] -> the hidden states [n, H] of each requested layer."""


@dataclass(frozen=True, eq=False)
class OwnVocabulary:
    """A teacher's outputs on a batch over its own ids, which may differ from the student's.

    A span is a piece of text at whose borders both sides have a token border: one or more tokens of
    each. `spans` need no forward pass; the trunk runs at the first call of `logits` or `nll`.
    """

    spans: Tensor  # int64 [valid]: span of each valid token; -1: none. Spans are contiguous
    logits: LogitsFn  # flat positions [n] of tokens that begin a span -> [n, V_teacher]
    nll: Callable[[], Tensor]
    """[valid, 2], in nats, where a span begins: the teacher's nll of its first token in the span,
    and the sum over its later tokens."""
    shared: tuple[Tensor, Tensor]  # int64 [m]: ids of equal text, the student's and its own


class TwoVocabularies(NamedTuple):
    """A teacher's outputs over the student's ids and over its own."""

    shared: Tensor | SparseLogits | Parts | None  # None: no loss needs it
    own: Tensor  # [n, V_teacher]


PartOutputs = Callable[["Tensor"], "Tensor | SparseLogits | Parts | TwoVocabularies"]
"""Flat positions [n] -> the teacher outputs that losses compare with."""


class TextSource(Protocol):
    """The part of a data component that row building needs."""

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
        """The texts of a split, in order; `documents`, if defined, adds columns."""
        ...

    def fingerprint(self) -> str:
        """Identifies the source, content included."""
        ...


def columns_of(batch: Batch) -> BatchColumns:
    """The columns of a batch's documents; empty ones where it was made without."""
    if batch.columns is not None:
        return batch.columns
    document = batch.document.cpu().numpy()
    predicts = batch.labels.cpu().numpy().reshape(document.shape) >= 0
    return BatchColumns([{}] * len(document), document, predicts)


class ReplayedTrunk(Protocol):
    """The passes of a trunk as CUDA graphs."""

    def states(self, batch: Batch, forward: Callable[[Batch], Tensor]) -> Tensor | None:
        """The last states [rows * time, H] of these rows; None where no graph fits."""

    def forget(self) -> None:
        """Drop all graphs and their memory."""

"""Operations and bytes of a step, counted from models without weights.

Matrices count by their parameters: 2 operations per token forward, 4 backward (2 if frozen), and 2
more for recomputed activations. Attention counts by the tokens that it reaches, heads by the tokens
that losses see. Bytes are those of the optimizer, activations and logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

UPDATE = 40  # bytes per trained parameter: gradient norm and scaling, AdamW's reads and writes
KEPT = 34, 6  # bytes of activations per token and layer: factors of width and inner width
LOGITS = 4 * 14  # bytes per id and token: float32 logits, read and written by losses
KERNELS = 143, 39  # kernels per layer: trained, forward alone
OUTSIDE = 65  # kernels per micro-batch, apart from layers


@dataclass(frozen=True)
class Shape:
    """What a model does per token."""

    matrices: int  # parameters in the layers' matrices
    trained: float  # the trained share of these
    head: int  # parameters
    width: int
    inner: int
    layers: int
    vocabulary: int
    parameters: int  # number of trained ones

    def forward(self, tokens: float, context: float) -> float:
        """Operations of the layers."""
        return 2 * tokens * (self.matrices + self.layers * self.width * context)

    def moved(self, tokens: float) -> float:
        """Bytes of activations, forward alone."""
        return tokens * self.layers * (KEPT[0] * self.width + KEPT[1] * self.inner)


def shape_of(model: PreTrainedModel) -> Shape:
    """From a model's parameters and config."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    looked_up = [each for each in model.modules() if isinstance(each, nn.Embedding)]
    outside = {id(p) for module in (*looked_up, head) if module for p in module.parameters()}
    inside = [p for p in model.parameters() if p.ndim > 1 and id(p) not in outside]
    matrices = sum(p.numel() for p in inside)
    trained = sum(p.numel() for p in inside if p.requires_grad)
    width, vocabulary = int(config.hidden_size), int(config.vocab_size)
    return Shape(
        matrices=matrices,
        trained=trained / max(1, matrices),
        head=width * vocabulary,
        width=width,
        inner=_inner(model, width),
        layers=int(config.num_hidden_layers),
        vocabulary=vocabulary,
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )


def _inner(model: nn.Module, width: int) -> int:
    """The largest inner width of a layer."""
    widths = [m.out_features for m in model.modules() if isinstance(m, nn.Linear)]
    inner = [each for each in widths if each <= 16 * width]
    return max(inner, default=4 * width)


@dataclass(frozen=True)
class Work:
    """What a stage does per token, and how many at a time."""

    student: Shape
    teachers: Sequence[Shape]  # read in each step
    stored: Sequence[Shape]  # read once per token of the data, then cached
    micro_batch: int
    time: int  # longest row, in tokens
    checkpointing: bool
    scores: bool  # scores all tokens before it keeps some
    evaluated: Sequence[Shape] = ()  # teachers that evaluations read

    def step(self, tokens: float, context: float) -> Cost:
        """An optimizer step of this many tokens, in documents of this length."""
        own = self.student
        passes = 2 + own.trained + self.checkpointing
        operations = passes * own.forward(tokens, context) + 6 * own.head * tokens
        operations += 2 * own.head * tokens * self.scores
        moved = UPDATE * own.parameters + 3 * own.moved(tokens)
        for teacher in self.teachers:
            operations += teacher.forward(tokens, context) + 2 * teacher.head * tokens
            moved += teacher.moved(tokens) + 4 * teacher.vocabulary * tokens
        moved += LOGITS * own.vocabulary * tokens
        batches = max(1.0, tokens / (self.micro_batch * self.time))
        kernels = OUTSIDE + KERNELS[0] * own.layers
        kernels += sum(KERNELS[1] * teacher.layers for teacher in self.teachers)
        return Cost(operations, moved, batches * kernels)

    def reading(self, tokens: float, context: float) -> Cost:
        """The forward passes of an evaluation."""
        return _forward(
            [self.student, *self.evaluated], tokens, context, self.micro_batch * self.time
        )

    def storing(self, tokens: float, context: float) -> Cost:
        """Caching the teachers' outputs, once."""
        return _forward(self.stored, tokens, context, self.micro_batch * self.time)

    def writing(self, tokens: float, group: int, context: float) -> Cost:
        """Generating this many tokens with the student, for this many prompts at a time."""
        own = self.student
        turns = tokens / max(1, group)
        operations = own.forward(tokens, context / 2) + 2 * own.head * tokens
        moved = turns * 4 * (own.matrices + own.head) + 8 * own.vocabulary * tokens
        return Cost(operations, moved, turns * KERNELS[1] * own.layers)


@dataclass(frozen=True)
class Cost:
    """The work of a device."""

    operations: float
    bytes: float
    kernels: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.operations + other.operations,
            self.bytes + other.bytes,
            self.kernels + other.kernels,
        )

    def times(self, count: float) -> Cost:
        """Repeated `n` times."""
        return Cost(count * self.operations, count * self.bytes, count * self.kernels)


NOTHING = Cost(0, 0, 0)


def _forward(shapes: Sequence[Shape], tokens: float, context: float, at_once: float) -> Cost:
    found = NOTHING
    for shape in shapes:
        kernels = (OUTSIDE + KERNELS[1] * shape.layers) * max(1.0, tokens / at_once)
        operations = shape.forward(tokens, context) + 2 * shape.head * tokens
        moved = shape.moved(tokens) + 12 * shape.vocabulary * tokens
        found += Cost(operations, moved, kernels)
    return found

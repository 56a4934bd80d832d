"""The plugin behind `tiny_run`: data, tokenizer, teacher, loss and eval.

Everything is made on the CPU in a moment, without network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from kdcore.api.component import component, hookimpl
from kdcore.api.data import Data, Tokenizer
from kdcore.api.loss import Loss
from kdcore.api.observers import Eval
from kdcore.api.run import Run
from kdcore.api.teacher import Teacher
from kdcore.testing.fakes import TableTeacher, tiny_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RECIPE = """\
name = "tiny"

[student.config]
model_type = "llama"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 4
max_position_embeddings = 128

[tokenizer]
use = "tiny-bytes"

[data]
use = "tiny-sums"
block = 64

[teacher]
use = "tiny-table"

[[loss]]
use = "tiny-nll"

[[eval]]
use = "tiny-eval"

[train]
lr = 1e-3
steps = 2
batch = 2
log_every = 1
save_every = 1
"""
"""Two steps that use every component of this plugin."""


@component
class TinySums(Data):
    """Forty sentences; every fourth is for validation."""

    name = "tiny-sums"

    def texts(self, split: str) -> Iterable[str]:
        """Sums of small numbers."""
        wanted = split == "validation"
        return (f"{n} and {n + 1} are {2 * n + 1}." for n in range(40) if (n % 4 == 0) == wanted)


@component
class TinyBytes(Tokenizer):
    """One id per byte."""

    name = "tiny-bytes"

    def load(self, run: Run, data: Data) -> PreTrainedTokenizerBase:
        """`tiny_tokenizer`."""
        return tiny_tokenizer()


@component
class TinyTable(TableTeacher):
    """`TableTeacher` for the ids of `tiny_tokenizer`."""

    name = "tiny-table"
    vocabulary: int = 257


@component
class TinyNll(Loss):
    """Cross-entropy."""

    name = "tiny-nll"
    needs_teacher = False

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """In nats."""
        return F.cross_entropy(student, labels, reduction="none")


@component
class TinyEval(Eval):
    """Needs the teacher, so that it is loaded whenever the run is opened."""

    name = "tiny-eval"
    needs_teacher = True

    def measure(self, run: Run) -> Mapping[str, float | str]:
        """Nothing."""
        return {}


@hookimpl
def kdcore_data() -> Sequence[type[Data]]:
    """For `RECIPE`."""
    return [TinySums]


@hookimpl
def kdcore_tokenizers() -> Sequence[type[Tokenizer]]:
    """For `RECIPE`."""
    return [TinyBytes]


@hookimpl
def kdcore_teachers() -> Sequence[type[Teacher]]:
    """For `RECIPE`."""
    return [TinyTable]


@hookimpl
def kdcore_losses() -> Sequence[type[Loss]]:
    """For `RECIPE`."""
    return [TinyNll]


@hookimpl
def kdcore_evals() -> Sequence[type[Eval]]:
    """For `RECIPE`."""
    return [TinyEval]

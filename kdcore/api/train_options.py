"""The options of the engine's own tables, with their types, defaults and ranges."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import ConfigDict, Field, field_validator
from pydantic.dataclasses import dataclass as pydantic_dataclass

from kdcore.api.schedule import Number, Schedule, Scheduled
from kdcore.optim import optimizer_error

# Frozen: nothing may change options after validation.
_CONFIG = ConfigDict(
    extra="forbid",
    strict=True,
    arbitrary_types_allowed=True,
    use_attribute_docstrings=True,  # shown by editors, see `kdcore schema`
)
_options = pydantic_dataclass(kw_only=True, frozen=True, eq=False, config=_CONFIG)
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
DURATIONS = ("epochs", "steps", "tokens")


class Rivals(NamedTuple):
    """Mutually exclusive keys. Among inherited ones, the nearest wins."""

    names: tuple[str, ...]
    needed: bool = True  # False: one of them has a default


RIVALS: Mapping[str, Sequence[Rivals]] = {
    "train": (Rivals(DURATIONS), Rivals(("batch", "batch_documents"), needed=False)),
    "student": (Rivals(("model", "config")),),
}
"""By table of the engine."""


def rivals_of(table: str, key: str) -> set[str]:
    """The keys of a table of the engine that exclude this one."""
    return {name for each in RIVALS.get(table, ()) if key in each.names for name in each.names} - {
        key
    }


Schedules = Literal[
    "constant",
    "constant_with_warmup",
    "cosine",
    "cosine_with_restarts",
    "inverse_sqrt",
    "linear",
    "polynomial",
]
"""The schedules of transformers that depend on the step only and need no arguments."""


@_options
class TrainOptions:
    """`[train]`."""

    lr: Positive
    """The highest learning rate."""
    epochs: Positive | None = None
    """Passes over the training rows; instead of `steps` and `tokens`."""
    steps: Annotated[int, Field(ge=0)] | None = None
    """Optimizer steps; instead of `epochs` and `tokens`."""
    tokens: Count | None = None
    """Tokens read in training; instead of `epochs` and `steps`."""
    batch: Count = 8
    """Rows in an optimizer step, over all processes."""
    batch_documents: Count | None = None
    """Documents in an optimizer step, packed into rows; instead of `batch`."""
    micro_batch: Literal["auto"] | Count = "auto"
    """Rows at a time: changes memory and speed, not the objective."""
    schedule: Schedules = "cosine"
    """How the learning rate changes during the run."""
    min_lr: Share = 0.0
    """The final learning rate as a fraction of `lr`."""
    warmup: NotNegative = 0.0
    """Steps of warmup; below 1 a fraction of the run."""
    optimizer: str = "adamw"
    """Of torch or bitsandbytes, such as adamw, sgd, adafactor, adamw_8bit."""
    weight_decay: NotNegative = 0.0
    """Does not apply to norms, biases and the like."""
    betas: Annotated[list[BelowOne], Field(min_length=2, max_length=2)] = Field(
        default_factory=lambda: [0.9, 0.999]
    )
    """Of Adam and its relatives."""
    eps: Positive = 1e-8
    """Of Adam and its relatives."""
    clip: NotNegative = 1.0
    """The largest norm of the gradient; 0 disables clipping."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """The dtype of forward and backward; weights stay in float32."""
    chunk: Literal["auto"] | Count = "auto"
    """Tokens whose logits exist at a time."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, slower."""
    shard: Literal["none", "full"] = "none"
    """With "full", the processes divide the student between them."""
    compile: Literal["auto"] | bool = "auto"
    """Compile the losses."""
    compile_trunk: bool = False
    """Compile the student's layers too: minutes at the start."""
    bf16_weights: bool = False
    """Forward and backward use bf16 copies of the float32 weights."""
    cuda_graphs: bool = False
    """Capture and replay the student's passes over rows of one shape."""
    non_finite: Literal["stop", "skip"] = "stop"
    """What happens at a step whose loss or gradient is not finite."""
    log_every: Count = 10
    """Steps between log records."""
    eval_every: Literal["epoch"] | Count = "epoch"
    """Steps between evaluations; the last step is always evaluated."""
    save_every: Literal["epoch"] | Count = "epoch"
    """Steps between checkpoints."""
    eval_first: bool = True
    """Evaluate before the first step."""
    eval_rows: Literal["all"] | Count = 2048
    """Held-out rows, drawn once by `eval_seed`."""
    eval_seed: Annotated[int, Field(ge=0)] = 0
    """Draws the held-out rows; the same for runs of every seed."""
    save_keep: Count = 2
    """How many checkpoints are kept."""
    keep_best: str | None = None
    """A score, such as "eval/nll": the best checkpoint becomes `final/`."""
    mode: Literal["max", "min"] | None = None
    """Whether the highest or the lowest score of `keep_best` is best; by default the lowest."""
    workers: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    """Above 0, a thread prepares the rows of the next step."""

    @property
    def drawn(self) -> int:
        """How many rows (documents with `batch_documents`) an optimizer step draws."""
        return self.batch_documents or self.batch

    @property
    def drawn_unit(self) -> Literal["documents", "rows"]:
        """The unit of `drawn`."""
        return "documents" if self.batch_documents else "rows"

    @field_validator("optimizer")
    @classmethod
    def _there_is_one(cls, optimizer: str) -> str:
        if problem := optimizer_error(optimizer):
            raise ValueError(problem)
        return optimizer

    @field_validator("warmup")
    @classmethod
    def _steps_or_share(cls, warmup: float) -> float:
        if warmup >= 1 and warmup != int(warmup):
            raise ValueError(
                f"warmup should be a whole number of steps, or a share below 1, not {warmup}"
            )
        return warmup


On = Literal["kept", "all", "dropped"]
"""Which tokens of a selection a term sees."""


_Value = str | int | Number
Where = Annotated[
    dict[str, _Value | Annotated[list[_Value], Field(min_length=1)]], Field(min_length=1)
]
"""Columns of a document with the value, or the values, that match; all columns must."""


@_options
class TermOptions:
    """The engine's options in `[[loss]]`."""

    weight: Scheduled = 1.0
    """The factor of this term in the loss, or a schedule of it."""
    on: On = "kept"
    """The tokens that this term sees: kept by the selection, dropped by it, or all."""
    where: Where | None = None
    """Only documents whose columns have these values."""


@_options
class SelectionOptions:
    """The engine's options in `[selection]`."""

    scope: Literal["step", "micro_batch"] = "step"
    """Tokens are ranked over the whole optimizer step, or within each micro-batch."""


@_options
class ResourceOptions:
    """`[resources]`: requests to a scheduler. They do not affect training."""

    gpus: Annotated[int, Field(ge=0)] | None = None
    """GPUs of a job."""
    cpus: Count | None = None
    """CPU cores of a job."""
    memory: str | None = None
    """Memory of the whole job, such as "32GB"."""
    hours: Positive | None = None
    """The time limit of a job in hours."""

    @field_validator("memory")
    @classmethod
    def _with_unit(cls, memory: str | None) -> str | None:
        if memory is not None and not re.fullmatch(r"[1-9]\d*[MGT]B", memory):
            raise ValueError(f'memory should be such as "32GB" or "500MB", not "{memory}"')
        return memory


@_options
class RolloutOptions:
    """The engine's options in `[rollout]`."""

    share: Annotated[Scheduled, Field(ge=0, le=1)] = 1.0
    """The share of rows that are generated, or a schedule of it."""
    every: Count = 1
    """The prompts of so many steps are answered together."""
    prompt_tokens: Count = 32
    """Tokens of a text that are its prompt; dialogues bring their own."""
    write_batch: Literal["auto"] | Count = "auto"
    """Prompts that are answered at a time."""

    def share_at(self, done: float) -> float:
        """The share of rows that are generated when the share `done` of the run is complete."""
        return self.share.at(done) if isinstance(self.share, Schedule) else self.share

    def group(self, block: int) -> int:
        """The number of prompts generated together, determined by the recipe alone."""
        if self.write_batch != "auto":
            return self.write_batch
        return max(1, min(_GROUP, _GROUP_TOKENS // block))


_GROUP, _GROUP_TOKENS = 64, 32_768

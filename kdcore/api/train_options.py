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
_CONFIG = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)
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
    epochs: Positive | None = None
    steps: Annotated[int, Field(ge=0)] | None = None
    tokens: Count | None = None
    batch: Count = 8
    batch_documents: Count | None = None
    micro_batch: Literal["auto"] | Count = "auto"
    schedule: Schedules = "cosine"
    min_lr: Share = 0.0
    warmup: NotNegative = 0.0
    optimizer: str = "adamw"
    weight_decay: NotNegative = 0.0
    betas: Annotated[list[BelowOne], Field(min_length=2, max_length=2)] = Field(
        default_factory=lambda: [0.9, 0.999]
    )
    eps: Positive = 1e-8
    clip: NotNegative = 1.0
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    chunk: Literal["auto"] | Count = "auto"
    checkpointing: bool = False
    shard: Literal["none", "full"] = "none"
    compile: Literal["auto"] | bool = "auto"
    compile_trunk: bool = False
    bf16_weights: bool = False
    cuda_graphs: bool = False
    non_finite: Literal["stop", "skip"] = "stop"
    log_every: Count = 10
    eval_every: Literal["epoch"] | Count = "epoch"
    save_every: Literal["epoch"] | Count = "epoch"
    eval_first: bool = True
    eval_rows: Literal["all"] | Count = 2048
    eval_seed: Annotated[int, Field(ge=0)] = 0
    save_keep: Count = 2
    keep_best: str | None = None
    mode: Literal["max", "min"] | None = None  # None is "min"
    workers: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"

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
    on: On = "kept"
    where: Where | None = None


@_options
class SelectionOptions:
    """The engine's options in `[selection]`."""

    scope: Literal["step", "micro_batch"] = "step"


@_options
class ResourceOptions:
    """`[resources]`: requests to a scheduler. They do not affect training."""

    gpus: Annotated[int, Field(ge=0)] | None = None
    cpus: Count | None = None
    memory: str | None = None  # "32GB", of the whole job
    hours: Positive | None = None

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
    every: Count = 1
    prompt_tokens: Count = 32
    write_batch: Literal["auto"] | Count = "auto"

    def share_at(self, done: float) -> float:
        """The share of rows that are generated when the share `done` of the run is complete."""
        return self.share.at(done) if isinstance(self.share, Schedule) else self.share

    def group(self, block: int) -> int:
        """The number of prompts generated together, determined by the recipe alone."""
        if self.write_batch != "auto":
            return self.write_batch
        return max(1, min(_GROUP, _GROUP_TOKENS // block))


_GROUP, _GROUP_TOKENS = 64, 32_768

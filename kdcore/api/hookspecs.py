"""Every hook. A plugin is a module, or in a run a component, with these names under `@hookimpl`.

Provider hooks take no arguments and return classes; the recipe chooses among them by name, so that
load order does not matter. Event hooks may name any of their arguments and leave out the rest. The
docstrings are the manual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from kdcore.api.contracts import (
        Data,
        Eval,
        Logger,
        Loss,
        Patch,
        Rollout,
        Run,
        Selection,
        Teacher,
        Tokenizer,
    )
    from kdcore.api.jobs import Executor
    from kdcore.models.completions import Completion


hookspec = pluggy.HookspecMarker("kdcore")


@hookspec
def kdcore_data() -> Sequence[type[Data]]:  # type: ignore[empty-body]
    """Kinds of text: `[data] use = "..."`."""


@hookspec
def kdcore_tokenizers() -> Sequence[type[Tokenizer]]:  # type: ignore[empty-body]
    """Where ids come from: `[tokenizer] use = "..."`."""


@hookspec
def kdcore_teachers() -> Sequence[type[Teacher]]:  # type: ignore[empty-body]
    """Teachers and reference models: `[teacher] use = "..."`, and nested in other components."""


@hookspec
def kdcore_losses() -> Sequence[type[Loss]]:  # type: ignore[empty-body]
    """Per-token objectives: `[[loss]] use = "..."`."""


@hookspec
def kdcore_selections() -> Sequence[type[Selection]]:  # type: ignore[empty-body]
    """Which tokens are trained on: `[selection] use = "..."`."""


@hookspec
def kdcore_rollouts() -> Sequence[type[Rollout]]:  # type: ignore[empty-body]
    """Who writes rows to train on: `[rollout] use = "..."`, and nested in other writers."""


@hookspec
def kdcore_patches() -> Sequence[type[Patch]]:  # type: ignore[empty-body]
    """Changes to a fresh student: `[[student.patch]] use = "..."`."""


@hookspec
def kdcore_evals() -> Sequence[type[Eval]]:  # type: ignore[empty-body]
    """Measurements: `[[eval]] use = "..."`."""


@hookspec
def kdcore_loggers() -> Sequence[type[Logger]]:  # type: ignore[empty-body]
    """Where records go: `[[log]] use = "..."`."""


@hookspec
def kdcore_executors() -> Sequence[type[Executor]]:  # type: ignore[empty-body]
    """Where the runs of a sweep are started: `kdcore sweep --on NAME`."""


@hookspec
def kdcore_run_start(run: Run) -> None:
    """A run begins or continues: models are loaded, `run.step` steps are done already."""


@hookspec
def kdcore_step_start(run: Run, step: int) -> None:
    """Optimizer step `step` (from 1) begins. Every step: nothing may wait for the device."""


@hookspec
def kdcore_log(run: Run, record: Record) -> None:
    """Every `train.log_every` steps, and after the last one."""


@hookspec
def kdcore_written(run: Run, step: int, completions: Sequence[Completion]) -> None:
    """A few of the answers that were written for a step, with each record where there is a
    [rollout]; each has its `prompt`.
    """


@hookspec
def kdcore_scores(run: Run, step: int, scores: Mapping[str, float | str]) -> None:
    """An evaluation ended. Keys are what the evals returned, such as "nll" or "agreement"."""


@hookspec
def kdcore_checkpoint(run: Run, step: int, path: Path) -> None:
    """A checkpoint was written whole at `path`."""


@hookspec
def kdcore_run_end(run: Run, error: BaseException | None) -> None:
    """The run ended; with what, if not by its last step."""


@hookspec
def kdcore_runs_end(folders: Sequence[Path]) -> None:
    """All runs that a command asked for are finished: their folders, in the order they ran."""


@dataclass(frozen=True)
class Record:
    """What happened in the steps since the last record. Plain numbers, means over these steps."""

    step: int  # optimizer steps done
    tokens: int  # valid tokens trained on so far, over all processes
    loss: float  # the sum of weight times term
    terms: Mapping[str, float]  # by the label of its `use` ("kl", "kl.2"): nats a token, unweighted
    lr: float  # the learning rate of the last step
    kept: float  # share of the valid tokens that the selection kept; 1.0 without one
    tokens_per_second: float  # valid tokens, over all processes
    selection: Mapping[str, float]  # threshold, excess_kept, excess_dropped, where scores rank
    gradient: Mapping[str, float] = field(default_factory=dict)  # each term's share, now and then
    weights: Mapping[str, float] = field(default_factory=dict)  # of the terms, by label
    rollout: Mapping[str, float] = field(default_factory=dict)  # length, finished, repeats, ...
    teacher: Mapping[str, float] = field(default_factory=dict)  # aligned: share that it knows

    def __post_init__(self) -> None:
        # Several listeners are handed the same record.
        object.__setattr__(self, "terms", MappingProxyType(dict(self.terms)))
        object.__setattr__(self, "selection", MappingProxyType(dict(self.selection)))
        object.__setattr__(self, "gradient", MappingProxyType(dict(self.gradient)))
        object.__setattr__(self, "weights", MappingProxyType(dict(self.weights)))
        object.__setattr__(self, "rollout", MappingProxyType(dict(self.rollout)))
        object.__setattr__(self, "teacher", MappingProxyType(dict(self.teacher)))

    def __reduce__(self) -> tuple[type[Record], tuple[object, ...]]:
        """Records go to other processes too; the views of their mappings cannot."""
        values = (getattr(self, each.name) for each in fields(self))
        return Record, tuple(dict(v) if isinstance(v, Mapping) else v for v in values)

"""All hooks. A plugin is a module, or a component in a run, that implements them with `@hookimpl`.

Provider hooks take no arguments and return classes; recipes choose among them by name, so load
order does not matter. Implementations of event hooks may omit arguments they do not use. The
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
    from kdcore.api.data import Data, Rollout, Tokenizer
    from kdcore.api.jobs import Executor
    from kdcore.api.loss import Loss
    from kdcore.api.observers import Eval, Logger
    from kdcore.api.run import Run
    from kdcore.api.student import Patch
    from kdcore.api.teacher import Teacher
    from kdcore.api.tokens import Selection
    from kdcore.models.completions import Completion


hookspec = pluggy.HookspecMarker("kdcore")


@hookspec
def kdcore_data() -> Sequence[type[Data]]:  # type: ignore[empty-body]
    """Sources of text: `[data] use = "..."`."""


@hookspec
def kdcore_tokenizers() -> Sequence[type[Tokenizer]]:  # type: ignore[empty-body]
    """Sources of the tokenizer: `[tokenizer] use = "..."`."""


@hookspec
def kdcore_teachers() -> Sequence[type[Teacher]]:  # type: ignore[empty-body]
    """Teachers and reference models: `[teacher] use = "..."`, and nested in other components."""


@hookspec
def kdcore_losses() -> Sequence[type[Loss]]:  # type: ignore[empty-body]
    """Per-token losses: `[[loss]] use = "..."`."""


@hookspec
def kdcore_selections() -> Sequence[type[Selection]]:  # type: ignore[empty-body]
    """Token selections: `[selection] use = "..."`."""


@hookspec
def kdcore_rollouts() -> Sequence[type[Rollout]]:  # type: ignore[empty-body]
    """Generators of training rows: `[rollout] use = "..."`, and nested in other rollouts."""


@hookspec
def kdcore_patches() -> Sequence[type[Patch]]:  # type: ignore[empty-body]
    """Changes to a fresh student: `[[student.patch]] use = "..."`."""


@hookspec
def kdcore_evals() -> Sequence[type[Eval]]:  # type: ignore[empty-body]
    """Evaluations: `[[eval]] use = "..."`."""


@hookspec
def kdcore_loggers() -> Sequence[type[Logger]]:  # type: ignore[empty-body]
    """Destinations of records: `[[log]] use = "..."`."""


@hookspec
def kdcore_executors() -> Sequence[type[Executor]]:  # type: ignore[empty-body]
    """Executors of sweep jobs: `kdcore sweep --on NAME`."""


@hookspec
def kdcore_run_start(run: Run) -> None:
    """A run starts or resumes. Models are loaded; `run.step` steps are already done."""


@hookspec
def kdcore_step_start(run: Run, step: int) -> None:
    """Optimizer step `step` (from 1) begins. Called in every step: must not sync the device."""


@hookspec
def kdcore_log(run: Run, record: Record) -> None:
    """A record is ready: every `train.log_every` steps, and after the last step."""


@hookspec
def kdcore_written(run: Run, step: int, completions: Sequence[Completion]) -> None:
    """A few completions that were generated for a step, each with its `prompt`. Called with each
    record where there is a [rollout].
    """


@hookspec
def kdcore_scores(run: Run, step: int, scores: Mapping[str, float | str]) -> None:
    """An evaluation ended. Keys are those that evals return, such as "nll" or "agreement"."""


@hookspec
def kdcore_checkpoint(run: Run, step: int, path: Path) -> None:
    """A checkpoint was written completely at `path`."""


@hookspec
def kdcore_run_end(run: Run, error: BaseException | None) -> None:
    """The run ended; `error` is the exception that ended it, None after its last step."""


@hookspec
def kdcore_runs_end(folders: Sequence[Path]) -> None:
    """All runs of a command have finished. `folders` are theirs, in the order they ran."""


@dataclass(frozen=True)
class Record:
    """Means over the steps since the last record, as plain numbers."""

    step: int  # optimizer steps done
    tokens: int  # valid tokens trained on so far, over all processes
    loss: float  # the weighted sum of the terms
    terms: Mapping[str, float]  # by label ("kl", "kl.2"): nats per token, unweighted
    lr: float  # learning rate of the last step
    kept: float  # share of valid tokens kept by the selection; 1.0 without one
    tokens_per_second: float  # valid tokens, over all processes
    selection: Mapping[str, float]  # threshold, excess_kept, excess_dropped, for rankings
    gradient: Mapping[str, float] = field(default_factory=dict)  # each term's share, if measured
    weights: Mapping[str, float] = field(default_factory=dict)  # the terms' weights, by label
    rollout: Mapping[str, float] = field(default_factory=dict)  # length, finished, repeats, ...
    teacher: Mapping[str, float] = field(default_factory=dict)  # aligned: share of tokens covered

    def __post_init__(self) -> None:
        # All listeners share one record, so it must be read-only.
        object.__setattr__(self, "terms", MappingProxyType(dict(self.terms)))
        object.__setattr__(self, "selection", MappingProxyType(dict(self.selection)))
        object.__setattr__(self, "gradient", MappingProxyType(dict(self.gradient)))
        object.__setattr__(self, "weights", MappingProxyType(dict(self.weights)))
        object.__setattr__(self, "rollout", MappingProxyType(dict(self.rollout)))
        object.__setattr__(self, "teacher", MappingProxyType(dict(self.teacher)))

    def __reduce__(self) -> tuple[type[Record], tuple[object, ...]]:
        """Mapping proxies cannot be pickled; records are, for other processes."""
        values = (getattr(self, each.name) for each in fields(self))
        return Record, tuple(dict(v) if isinstance(v, Mapping) else v for v in values)

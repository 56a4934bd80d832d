"""Teachers derived from the student: its initial weights, or a moving average of its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from kdcore import Batch, LanguageModel, LogitsFn, Run, StatesFn, Teacher, component, hookimpl


class _Copy(Teacher):
    """A copy of the student; frozen weights are shared, so with LoRA only adapters are copied."""

    def __post_init__(self) -> None:
        self._model: LanguageModel | None = None
        self._run: Run | None = None

    def load(self, run: Run) -> None:
        """Copy the student before its first step."""
        self._model, self._run = run.language_model.copy(), run
        named = run.student.named_parameters()
        self._averaged = [name for name, p in named if p.requires_grad]

    def is_sharded(self) -> bool:
        """As the student."""
        return self._model is not None and self._model.sharded

    def read(self, batch: Batch) -> LogitsFn:
        """Run the trunk once, in the student's precision."""
        return self.read_states(batch, ())[0]

    def layer_sizes(self) -> Sequence[int]:
        """The student's layer widths."""
        assert self._model is not None, "asked after it was loaded"
        self._model.watch_layers(())
        return self._model.layer_sizes

    def read_states(self, batch: Batch, layers: Sequence[int]) -> tuple[LogitsFn, StatesFn]:
        """Like `read`, with the hidden states of these layers."""
        assert self._model is not None and self._run is not None, "read after it was loaded"
        model = self._model
        model.precision = self._run.language_model.precision
        with self._run.autocast():
            states, kept = model.layer_states(batch, layers)
        return (
            lambda positions: model.logits(states[positions]),
            lambda positions: [each[positions] for each in kept],
        )

    def _weights(self) -> dict[str, Tensor]:
        assert self._model is not None, "a teacher has weights once it was loaded"
        self._model.rest()
        held = dict(self._model.model.named_parameters())
        return {name: held[name] for name in self._averaged}


@component
class Itself(_Copy):
    """The student with its weights before the first step."""

    name = "self"


@component
class Average(_Copy):
    """An exponential moving average of the student's weights (mean teacher).

    After every `every` steps: average = decay * average + (1 - decay) * student. Tarvainen and
    Valpola 2017, arXiv:1703.01780.
    """

    name = "ema"
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    every: Annotated[int, Field(ge=1)] = 1

    @hookimpl
    def kdcore_step_start(self, run: Run, step: int) -> None:
        """Add the weights of the previous step to the average."""
        done = step - 1
        if not done or done % self.every:
            return
        now = dict(run.student.named_parameters())
        with torch.no_grad():
            for name, average in self._weights().items():
                average.lerp_(now[name].to(average.dtype), 1 - self.decay)

    def state_dict(self) -> Mapping[str, Tensor | int | float | str | bytes]:
        """The averaged weights."""
        return self._weights()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the averaged weights."""
        with torch.no_grad():
            for name, average in self._weights().items():
                average.copy_(state[name])


@hookimpl
def kdcore_teachers() -> Sequence[type[Teacher]]:
    """The teachers `self` and `ema`."""
    return [Itself, Average]

"""A replay buffer of earlier answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from torch import Tensor

from kdcore import (
    Completion,
    Prompt,
    Rollout,
    Run,
    completions_from,
    completions_state,
    component,
)

_FRESH = 0xF2E5  # a stream of random numbers


@component
class Replay(Rollout):
    """Store another writer's answers, and reuse them with the prompts they belong to.

    Ko et al., "DistiLLM", ICML 2024 (adaptive off-policy use of student-generated output):
    generation takes most of a step, and answers that are a few steps old are good enough.
    """

    name = "replay"
    of: Annotated[Rollout, Field(description="who writes what is new")]
    capacity: Annotated[int, Field(ge=1, description="answers that are kept; the oldest leave")] = (
        1024
    )
    fresh: Annotated[
        float, Field(ge=0, le=1, description="of the prompts that are answered anew")
    ] = 0.5

    def __post_init__(self) -> None:
        self._kept: deque[Completion] = deque(maxlen=self.capacity)

    def needs_teacher(self) -> bool:
        """As the inner writer."""
        return self.of.needs_teacher()

    def generate(
        self, run: Run, prompts: Sequence[Prompt]
    ) -> Sequence[Completion | Sequence[Completion]]:
        """New answers to some prompts; for the others a stored one if there is any."""
        drawn = [np.random.default_rng([prompt.seed, _FRESH]) for prompt in prompts]
        anew = [not self._kept or float(one.random()) < self.fresh for one in drawn]
        asked = [prompt for prompt, new in zip(prompts, anew, strict=True) if new]
        written = iter(self.of.generate(run, asked) if run.most(len(asked)) else ())
        return [
            next(written) if new else self._kept[int(one.integers(len(self._kept)))]
            for one, new in zip(drawn, anew, strict=True)
        ]

    def generated(self, run: Run, step: int, completions: Sequence[Completion]) -> None:
        """Store the new answers."""
        self.of.generated(run, step, completions)
        known = {_key(one) for one in self._kept}
        self._kept.extend(one for one in completions if _key(one) not in known)

    def state_dict(self) -> Mapping[str, Tensor | int | float | str | bytes]:
        """The buffer."""
        return dict(completions_state(list(self._kept)))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the buffer."""
        self._kept = deque(completions_from(state), maxlen=self.capacity)


def _key(one: Completion) -> tuple[int, tuple[int, ...]]:
    """Identifies an answer by its prompt's seed and its ids."""
    return (one.prompt.seed if one.prompt is not None else -1, tuple(one.ids))

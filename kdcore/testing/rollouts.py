"""Check the contract of rollouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from kdcore.api.data import Data, Rollout
from kdcore.api.run import Run
from kdcore.api.teacher import Teacher
from kdcore.models.causal_lm import LanguageModel
from kdcore.models.completions import Completion, Prompt, Sampling
from kdcore.testing.fakes import TableTeacher, tiny_llama

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_VOCABULARY, _END = 64, 0


class _Spelling:
    """A tokenizer that decodes ids to their numbers."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The ids as numbers."""
        return " ".join(map(str, ids))


class WritingRun(Run):
    """The part of a run that rollouts use: a tiny student, and a loaded teacher."""

    def __init__(self, teacher: Teacher | None = None, *, block: int = 120) -> None:
        self.language_model = LanguageModel(tiny_llama(_VOCABULARY))
        self.device, self.process, self.processes = torch.device("cpu"), 0, 1
        self.vocabulary, self.micro_batch, self.step, self.steps = _VOCABULARY, 2, 0, 10
        self.autocast = nullcontext
        self._place = TemporaryDirectory(prefix="kdcore-writing-")
        self.folder = Path(self._place.name) / "run"
        self.tokenizer = _Spelling()  # type: ignore[assignment]
        self._teacher, self._data = teacher, SimpleNamespace(block=block)

    @property
    def student(self) -> PreTrainedModel:
        """`tiny_llama`."""
        return self.language_model.model

    @property
    def teacher(self) -> Teacher | None:
        """The teacher given to the constructor."""
        return self._teacher

    @property
    def data(self) -> Data:
        """Data with a row length."""
        return self._data  # type: ignore[return-value]

    @property
    def seed(self) -> int:
        """0."""
        return 0

    def sampling(self, rollout: Rollout) -> Sampling:
        """Sampling by the rollout's options."""
        return Sampling(
            max_new_tokens=rollout.max_new_tokens,
            temperature=rollout.temperature,
            top_k=rollout.top_k,
            top_p=rollout.top_p,
            ends=frozenset({_END}),
            vocabulary=self.vocabulary,
        )

    def sample(
        self, prompts: Sequence[Prompt], n: int = 1, *, sampling: Sampling | None = None
    ) -> list[Completion]:
        """Completions by the student."""
        from kdcore.rollout.local import sample_student

        return sample_student(self, prompts, n, sampling or Sampling(8, ends=frozenset({_END})))

    def score(
        self, teacher: Teacher | None, prompts: Sequence[Prompt], completions: Sequence[Completion]
    ) -> list[float]:
        """The log-probability of each completion."""
        from kdcore.rollout.local import score

        return score(self, teacher, prompts, completions)

    def say(self, message: str) -> None:
        """Discards the message."""


def make_prompts(count: int = 5, *, first: int = 0) -> list[Prompt]:
    """Prompts of different lengths, each with a seed of its own."""
    return [
        Prompt(tuple(range(1, 3 + n % 4)), 100 + first + n, document=first + n)
        for n in range(count)
    ]


def check_rollout(
    rollout: Rollout, make: Callable[[], Rollout] | None = None, *, teacher: Teacher | None = None
) -> None:
    """Assert that a rollout answers every prompt, depending only on its seed and state.

    `make` makes another one with the same options, to which state is handed over as by a
    checkpoint. Nested teachers must be loaded. `teacher` is the run's.
    """
    asked = teacher or (TableTeacher() if rollout.needs_teacher() else None)
    run = WritingRun(asked, block=rollout.max_new_tokens + 16)
    weights = [p.clone() for p in run.student.parameters()]
    state, prompts = torch.get_rng_state(), make_prompts()
    found = _answers(rollout, run, prompts)
    torch.rand(3)
    _require(_answers(rollout, run, prompts) == found, rollout, "answers otherwise the second time")
    turned = _answers(rollout, run, prompts[::-1])[::-1]
    same = turned == found
    _require(same, rollout, "answers otherwise in another order: draw from each prompt's seed")
    others = _answers(rollout, run, [prompt.again(1) for prompt in prompts])
    drawn = rollout.temperature > 0 and not rollout.needs_teacher()
    _require(not drawn or others != found, rollout, "does not look at the seeds of prompts")
    kept = all(map(torch.equal, weights, run.student.parameters()))
    _require(kept, rollout, "changed the student's weights")
    torch.set_rng_state(state)
    if make is not None:
        _check_state(rollout, make(), run)


def _check_state(one: Rollout, other: Rollout, run: WritingRun) -> None:
    """Equal history, or the state of a rollout with that history, gives equal completions."""
    for step in (1, 2):
        some = make_prompts(4, first=10 * step)
        answers = _completions(one, run, some)
        one.generated(run, step, answers)
    other.load_state_dict(one.state_dict())
    later = make_prompts(6, first=50)
    same = _answers(other, run, later) == _answers(one, run, later)
    _require(same, one, "writes otherwise after its state was handed to another one")


def _answers(rollout: Rollout, run: WritingRun, prompts: Sequence[Prompt]) -> list[object]:
    from kdcore.rollout.writing import answered

    return [
        [(tuple(one.ids), one.finished, one.source) for one in some]
        for some in answered(run, rollout, prompts)
    ]


def _completions(rollout: Rollout, run: WritingRun, prompts: Sequence[Prompt]) -> list[Completion]:
    from kdcore.rollout.writing import answered

    return [one for some in answered(run, rollout, prompts) for one in some]


def _require(holds: bool, checked: Any, otherwise: str) -> None:
    assert holds, f"{checked.name}: {otherwise}"

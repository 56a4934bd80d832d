"""A teacher answers: sequence-level distillation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

from pydantic import Field

from kdcore import Completion, Prompt, Rollout, Run, Stage, Teacher, component


@component
class TeacherWrites(Rollout):
    """The run's teacher, or another one. Kim and Rush, "Sequence-Level Knowledge Distillation",
    EMNLP 2016, sampled instead of searched for.

    A prompt that comes again, in a later epoch, gets another answer.
    """

    name = "teacher"
    teacher: Annotated[
        Teacher | None, Field(description="who answers; by default the recipe's [teacher]")
    ] = None

    def needs_teacher(self) -> bool:
        """Where no other one is given."""
        return self.teacher is None

    def faults(self, recipe: Stage) -> Iterable[str]:
        """A teacher that cannot write."""
        writer = self.teacher or recipe.teacher
        if writer is not None and not writer.writes():
            yield f"the teacher {writer.name!r} only reads what others wrote, and cannot write"

    def generate(self, run: Run, prompts: Sequence[Prompt]) -> Sequence[Completion]:
        """One answer each."""
        writer = self.teacher or run.teacher
        assert writer is not None, "assembly sees to it"
        return writer.generate(prompts, run.sampling(self))

"""Several writers answer each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from kdcore import Completion, Prompt, Rollout, Run, component


@component
class Several(Rollout):
    """Each member answers each prompt; `Tokens.prompt` identifies answers to the same prompt.

    Ko et al., "DistiLLM-2", ICML 2025: the teacher's answer and the student's.
    """

    name = "several"
    members: Annotated[list[Rollout], Field(min_length=2)]

    def needs_teacher(self) -> bool:
        """Whether any member does."""
        return any(member.needs_teacher() for member in self.members)

    def generate(
        self, run: Run, prompts: Sequence[Prompt]
    ) -> Sequence[Completion | Sequence[Completion]]:
        """Each member's answers, drawn with its own random numbers."""
        found: list[list[Completion]] = [[] for _ in prompts]
        for number, member in enumerate(self.members):
            answers = member.generate(run, [prompt.again(number) for prompt in prompts])
            for some, one in zip(found, answers, strict=True):
                some += [one] if isinstance(one, Completion) else one
        return found

    def generated(self, run: Run, step: int, completions: Sequence[Completion]) -> None:
        """Forwarded to every member."""
        for member in self.members:
            member.generated(run, step, completions)

"""The student answers: on-policy distillation."""

from __future__ import annotations

from collections.abc import Sequence

from kdcore import Completion, Prompt, Rollout, Run, component


@component
class StudentWrites(Rollout):
    """The student, with its weights before the step.

    Sources: Agarwal et al., "On-Policy Distillation of Language Models" (GKD), ICLR 2024, whose
    lambda is `share`; Lu et al., "On-Policy Distillation", Thinking Machines, 2025.
    """

    name = "student"

    def generate(self, run: Run, prompts: Sequence[Prompt]) -> Sequence[Completion]:
        """One answer per prompt."""
        return run.sample(prompts, sampling=run.sampling(self))

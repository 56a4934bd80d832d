"""Selections that keep a share of the tokens: the highest-scoring ones, or a random draw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdcore import Loss, Scheduled, Selection, Stage, Teacher, Tokens, component

Share = Annotated[Scheduled, Field(alias="keep", gt=0, le=1)]


@component
class Top(Selection):
    """Base of the top-share selections: ceil(keep x N) of the step's N valid tokens are kept."""

    # `keep` in recipes; an attribute of that name would hide the method.
    share: Share

    def keep(self, tokens: Tokens) -> Tensor:
        """The tokens with the highest scores [n]."""
        return tokens.top(self.scores(tokens), self.share)

    def scores(self, tokens: Tokens) -> Tensor:
        """The scores that rank the tokens [n]."""
        raise NotImplementedError


@component
class Rho(Top):
    """Tokens with the highest excess loss: the student's loss minus a reference model's.

    Lin et al. 2024 (RHO-1), arXiv:2404.07965. The reference is a teacher of the selection's own.
    """

    name = "rho"
    reference: Teacher

    def faults(self, recipe: Stage) -> Iterable[str]:
        """Reject a reference that does not give the loss of every token."""
        if not self.reference.gives_losses():
            yield f"the reference {self.reference.name!r} does not know the loss of every token"

    def scores(self, tokens: Tokens) -> Tensor:
        """The excess loss [n]."""
        return tokens.student_nll() - tokens.nll(self.reference)


@component
class Random(Top):
    """Random tokens, drawn anew at each step: the control for every other selection."""

    name = "random"
    controls: ClassVar[Mapping[str, str]] = {"random-selection": "keep"}

    def scores(self, tokens: Tokens) -> Tensor:
        """A random number per token [n]."""
        return tokens.random()


@component
class Hardest(Top):
    """Tokens with the highest student loss."""

    name = "hardest"

    def scores(self, tokens: Tokens) -> Tensor:
        """The student's loss [n]."""
        return tokens.student_nll()


@component
class Entropy(Top):
    """Tokens where the student, or the run's teacher, has the highest entropy."""

    name = "entropy"
    of: Literal["student", "teacher"] = "student"

    def faults(self, recipe: Stage) -> Iterable[str]:
        """Reject a teacher that gives losses only: it has no entropy."""
        if self.needs_teacher() and recipe.teacher and not recipe.teacher.gives_logits():
            yield f"the teacher's entropy needs logits, and {recipe.teacher.name!r} gives none"

    def needs_teacher(self) -> bool:
        """Whether `of` is the teacher."""
        return self.of == "teacher"

    def scores(self, tokens: Tokens) -> Tensor:
        """The entropy of the next-token distribution, in nats [n]."""
        return tokens.score(_TeacherEntropy() if self.of == "teacher" else _StudentEntropy())


@component
class Score(Top):
    """Tokens with the highest value of any loss."""

    name = "score"
    score: Loss

    def needs_teacher(self) -> bool:
        """Whether the scoring loss needs the run's teacher."""
        return self.score.needs_teacher

    def scores(self, tokens: Tokens) -> Tensor:
        """The loss of each token [n]."""
        return tokens.score(self.score)


@component
class Band(Selection):
    """Tokens whose loss lies between two percentiles of the step: neither learned nor noise."""

    name = "band"
    score: Loss
    # `from` in recipes, a keyword in Python
    above: Annotated[float, Field(alias="from", ge=0, lt=1)] = 0.0
    below: Annotated[float, Field(alias="to", gt=0, le=1)] = 1.0

    def faults(self, recipe: Stage) -> Iterable[str]:
        """Reject an empty band."""
        if self.above >= self.below:
            yield f"from = {self.above} is not below to = {self.below}: no token lies between"

    def needs_teacher(self) -> bool:
        """Whether the scoring loss needs the run's teacher."""
        return self.score.needs_teacher

    def keep(self, tokens: Tokens) -> Tensor:
        """The tokens above the percentile `from` and not above `to` [n]."""
        scores = tokens.score(self.score)
        high = tokens.top(scores, 1 - self.below) if self.below < 1 else None
        kept = tokens.top(scores, 1 - self.above)
        return kept if high is None else kept & ~high


class _StudentEntropy(Loss):
    name = "student-entropy"
    needs_teacher = False

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        return _entropy(student)


class _TeacherEntropy(Loss):
    name = "teacher-entropy"

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        assert teacher is not None, "the engine hands a teacher to a loss that needs one"
        return _entropy(teacher)


def _entropy(logits: Tensor) -> Tensor:
    # entr(0) is 0, also for excluded ids.
    each: Tensor = torch.special.entr(logits.softmax(-1))
    return each.sum(-1)

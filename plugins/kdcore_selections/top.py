"""Selections that keep a share of the tokens: those that score highest, or any."""

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
    """What the selections share: ceil(keep x N) of the step's N valid tokens are kept."""

    # `keep` in recipes; as an attribute it would hide the method.
    share: Share

    def keep(self, tokens: Tokens) -> Tensor:
        """The tokens with the highest scores."""
        return tokens.top(self.scores(tokens), self.share)

    def scores(self, tokens: Tokens) -> Tensor:
        """What ranks the tokens [n]."""
        raise NotImplementedError


@component
class Rho(Top):
    """Tokens where the student is furthest behind a reference: its loss minus the reference's.

    Lin et al. 2024 (RHO-1), arXiv:2404.07965. The reference is a teacher of the selection's own.
    """

    name = "rho"
    reference: Teacher

    def faults(self, recipe: Stage) -> Iterable[str]:
        """A reference that does not know the loss of every token."""
        if not self.reference.gives_losses():
            yield f"the reference {self.reference.name!r} does not know the loss of every token"

    def scores(self, tokens: Tokens) -> Tensor:
        """The excess loss."""
        return tokens.student_nll() - tokens.nll(self.reference)


@component
class Random(Top):
    """Tokens drawn at random, anew at each step: the control of every other selection."""

    name = "random"
    controls: ClassVar[Mapping[str, str]] = {"random-selection": "keep"}

    def scores(self, tokens: Tokens) -> Tensor:
        """A random number for each token."""
        return tokens.random()


@component
class Hardest(Top):
    """Tokens that the student predicts worst: those of the highest loss."""

    name = "hardest"

    def scores(self, tokens: Tokens) -> Tensor:
        """The student's loss."""
        return tokens.student_nll()


@component
class Entropy(Top):
    """Tokens where the student, or the run's teacher, is least certain what follows."""

    name = "entropy"
    of: Literal["student", "teacher"] = "student"

    def faults(self, recipe: Stage) -> Iterable[str]:
        """A teacher that knows losses only has no entropy."""
        if self.needs_teacher() and recipe.teacher and not recipe.teacher.gives_logits():
            yield f"the teacher's entropy needs logits, and {recipe.teacher.name!r} gives none"

    def needs_teacher(self) -> bool:
        """Whether the teacher's entropy is asked for."""
        return self.of == "teacher"

    def scores(self, tokens: Tokens) -> Tensor:
        """The entropy of the next token, in nats."""
        return tokens.score(_TeacherEntropy() if self.of == "teacher" else _StudentEntropy())


@component
class Score(Top):
    """Tokens where a loss, any loss, is highest."""

    name = "score"
    score: Loss

    def needs_teacher(self) -> bool:
        """Whether the loss needs the run's teacher."""
        return self.score.needs_teacher

    def scores(self, tokens: Tokens) -> Tensor:
        """The loss of each token."""
        return tokens.score(self.score)


@component
class Band(Selection):
    """Tokens whose loss lies between two percentiles of the step: neither known nor noise."""

    name = "band"
    score: Loss
    # `from` in recipes; the word is Python's.
    above: Annotated[float, Field(alias="from", ge=0, lt=1)] = 0.0
    below: Annotated[float, Field(alias="to", gt=0, le=1)] = 1.0

    def faults(self, recipe: Stage) -> Iterable[str]:
        """A band that is empty."""
        if self.above >= self.below:
            yield f"from = {self.above} is not below to = {self.below}: no token lies between"

    def needs_teacher(self) -> bool:
        """Whether the loss needs the run's teacher."""
        return self.score.needs_teacher

    def keep(self, tokens: Tokens) -> Tensor:
        """Those above `from` that are not above `to`."""
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
    # entr(0) is 0, also for ids that a model excludes.
    each: Tensor = torch.special.entr(logits.softmax(-1))
    return each.sum(-1)

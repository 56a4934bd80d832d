"""A stage: what one run is made of, checked and built."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from kdcore.api import Component, Data, Eval, Logger, Selection, Teacher, Tokenizer
from kdcore.build import walk
from kdcore.options import StudentOptions, Term, TrainOptions

Scope = Literal["step", "micro_batch"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Stage:
    """The components and options of one run. `recipe.build` makes a fresh one at each call."""

    name: str  # "" where the recipe has no stages
    run_name: str  # "rho_qwen", or with stages "quickstart.teacher"
    table: dict[str, object]  # the merged recipe as typed
    seed: int
    student: StudentOptions
    tokenizer: Tokenizer | None  # None: the student's own
    tokenizer_data: Data  # what the tokenizer is trained on, if it is
    data: Data
    teacher: Teacher | None
    terms: Sequence[Term]
    selection: Selection | None
    scope: Scope  # over what the selection ranks
    evals: Sequence[Eval]  # those that every run has included
    loggers: Sequence[Logger]
    train: TrainOptions
    trusted: Sequence[str] = ()  # models whose own code may run

    def components(self) -> list[Component]:
        """Every component, each before those that are nested in it."""
        seen = dict.fromkeys(nested for one in self._direct() for nested in walk(one))
        return list(seen)

    def _direct(self) -> Iterator[Component]:
        single = (self.tokenizer, self.tokenizer_data, self.data, self.teacher, self.selection)
        yield from (one for one in single if one is not None)
        yield from self.student.patches
        yield from (term.loss for term in self.terms)
        yield from self.evals
        yield from self.loggers

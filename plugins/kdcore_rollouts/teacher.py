"""A teacher answers: sequence-level distillation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from kdcore import (
    Completion,
    Prompt,
    Rollout,
    Run,
    Stage,
    Teacher,
    component,
    describe,
    tokenizer_hash,
)
from kdcore_rollouts.dialogue import asked_in
from kdcore_rollouts.kept import Answers, KeptAnswer, Key, drawn_as, key_of_ids, seed_of


@component
class TeacherWrites(Rollout):
    """The run's teacher, or another one, writes the answers.

    Kim and Rush, "Sequence-Level Knowledge Distillation", EMNLP 2016, with sampling instead of beam
    search. Each prompt is answered once: answers are stored next to the teacher caches, for later
    epochs and for runs with the same teacher and sampling options. With `keep = false` nothing is
    stored, and each use of a prompt gets a new answer.
    """

    name = "teacher"
    teacher: Annotated[
        Teacher | None, Field(description="who answers; by default the recipe's [teacher]")
    ] = None
    keep: Annotated[bool, Field(description="answers on disk, each prompt's once")] = True

    def __post_init__(self) -> None:
        self._answers: Answers | None = None

    def needs_teacher(self) -> bool:
        """Whether no other teacher is given."""
        return self.teacher is None

    def faults(self, recipe: Stage) -> Iterable[str]:
        """Reject a teacher that cannot generate text."""
        writer = self.teacher or recipe.teacher
        if writer is not None and not writer.writes():
            yield f"the teacher {writer.name!r} only reads what others wrote, and cannot write"

    def generate(self, run: Run, prompts: Sequence[Prompt]) -> Sequence[Completion]:
        """One answer per prompt."""
        writer = self.teacher or run.teacher
        assert writer is not None, "assembly sees to it"
        if not self.keep:
            return writer.generate(prompts, run.sampling(self))
        kept = self.kept(run)
        keys = [self.keys(prompt)[0] for prompt in prompts]
        new = {key: one for key, one in zip(keys, prompts, strict=True) if key not in kept}
        asked = [replace(one, seed=seed_of(*key)) for key, one in new.items()]
        written = writer.generate(asked, run.sampling(self)) if run.most(len(asked)) else ()
        for (key, prompt), one in zip(new.items(), written, strict=True):
            kept.put(key, _to_keep(run, prompt, one))
        return [_completion(kept, key) for key in keys]

    def kept(self, run: Run) -> Answers:
        """The answers stored so far."""
        if self._answers is None:
            writer = self.teacher or run.teacher
            assert writer is not None, "assembly sees to it"
            sampling = drawn_as(run.sampling(self))
            meta = {"teacher": writer.fingerprint(), "sampling": sampling}
            if writer.own_tokens:  # the answers' ids are the student's, not the teacher's
                meta["tokenizer"] = tokenizer_hash(run.tokenizer)
            self._answers = Answers.open(run.caches, self.name, meta, describe(writer))
        return self._answers

    def keys(self, prompt: Prompt) -> list[Key]:
        """The lookup keys of the prompts' answers."""
        return [(key_of_ids(prompt.ids), 0)]


def _to_keep(run: Run, prompt: Prompt, one: Completion) -> KeptAnswer:
    text = str(run.tokenizer.decode([*one.ids], skip_special_tokens=True))
    logs = None if one.log_probs is None else [float(each) for each in one.log_probs]
    ids = [int(each) for each in one.ids]
    return KeptAnswer(ids, one.finished, logs, asked_in(prompt), text)


def _completion(kept: Answers, key: Key) -> Completion:
    assert key in kept, "it was just written"
    found = kept[key]
    return Completion(found.ids, found.finished, found.log_probs, source="teacher")

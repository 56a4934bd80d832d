"""Completions by a teacher with another tokenizer, converted to the student's ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kdcore import Completion, Prompt, Retokenizer, Sampling, Teacher
from kdcore_aligned.dialogues import OwnTemplate, whole_characters


class Translator:
    """Converts prompts to the teacher's ids, and completions to the student's.

    `ends`: the ids that end an answer of a dialogue on both sides, if known.
    """

    def __init__(
        self,
        retokenizer: Retokenizer,
        dialogues: OwnTemplate | None,
        ends: tuple[int, int] | None,
    ) -> None:
        self._retokenizer, self._dialogues = retokenizer, dialogues
        eos = retokenizer.ours.eos_token_id, retokenizer.others.eos_token_id
        self._eos, self._ends = eos, ends or eos
        found = [n for n in (eos[1], self._ends[1]) if n is not None]
        self._other_ends = frozenset(int(n) for n in found)

    def generate(
        self, teacher: Teacher, prompts: Sequence[Prompt], sampling: Sampling, vocabulary: int
    ) -> list[Completion]:
        """The teacher's completions in the student's ids.

        A completion has no ids if its prompt cannot be converted: one that ends within a character,
        or a truncated dialogue. `max_new_tokens` limits the tokens of both sides.
        """
        asked = [self._prompt(each) for each in prompts]
        theirs = replace(sampling, vocabulary=vocabulary, ends=self._other_ends)
        possible = [each for each in asked if each is not None]
        given = iter(teacher.generate(possible, theirs) if possible else ())
        return [
            Completion((), False, source="teacher")
            if other is None
            else self._completion(prompt, next(given), sampling)
            for prompt, other in zip(prompts, asked, strict=True)
        ]

    def _prompt(self, prompt: Prompt) -> Prompt | None:
        ids = self._dialogues.prompt(prompt) if self._dialogues else None
        if ids is None:
            ids = self._text_prompt(prompt.ids)
        return replace(prompt, ids=tuple(ids)) if len(ids) else None

    def _text_prompt(self, ids: Sequence[int]) -> Sequence[int]:
        spelled = b"".join(self._retokenizer.our_bytes[each] for each in ids)
        if len(whole_characters(spelled).encode()) < len(spelled):
            return ()
        return [*self._retokenizer.piece([*ids], whole=True).ids]

    def _completion(self, prompt: Prompt, given: Completion, sampling: Sampling) -> Completion:
        said = given.ids[: len(given.ids) - given.finished]
        text = whole_characters(b"".join(self._retokenizer.other_bytes[each] for each in said))
        ids = continued(self._retokenizer, text)
        end = self._ends[0] if prompt.exchange else self._eos[0]
        if given.finished and end is not None:
            ids = [*ids, int(end)]
        kept = ids[: sampling.max_new_tokens]
        return Completion(tuple(kept), given.finished and kept == ids, source="teacher")


def continued(retokenizer: Retokenizer, text: str) -> list[int]:
    """The student's ids of a text that follows other text.

    A tokenizer that puts a space before each text encodes it after a line break, which is dropped.
    """
    wanted, table = text.encode(), retokenizer.our_bytes
    plain, after = (
        [
            int(each)
            for each in retokenizer.ours.encode(
                before + text, add_special_tokens=False, split_special_tokens=True
            )
        ]
        for before in ("", "\n")
    )
    if b"".join(table[each] for each in plain) == wanted:
        return plain
    left = sum(len(table[each]) for each in after)
    for at, each in enumerate(after):
        if left == len(wanted) and b"".join(table[n] for n in after[at:]) == wanted:
            return after[at:]
        left -= len(table[each])
    return plain

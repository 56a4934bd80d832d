"""Dialogues as teachers get them: the messages, and which tokens of a document are answers.

The column `dialogue` of each document holds this if a teacher needs it. The teacher can then render
the same dialogue in another chat template, or with a longer prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kdcore import RunError
from kdcore_sft.answers import answered, rendered
from kdcore_sft.formats import Dialogue
from kdcore_sft.marks import Marks
from kdcore_sft.masking import Document, document, documents
from kdcore_sft.messages import Message
from kdcore_sft.templates import Template, template_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DIALOGUE = "dialogue"
"""The column."""


class Answered(NamedTuple):
    """A trained answer, in the tokens of a document."""

    turn: int  # index in the dialogue
    first: int  # its first token,
    end: int  # and the end of its tokens, without the one that ends the turn
    before: int  # characters of the first token before the answer
    text: str
    stop: int  # the token that ends the turn; -1: none


class Told(NamedTuple):
    """A document's dialogue."""

    messages: Sequence[Message]
    given: Mapping[str, Any]  # other values that a chat template may use
    answers: Sequence[Answered]

    def to_text(self) -> str:
        """The serialised form in the column."""
        return json.dumps(self._asdict(), ensure_ascii=False)

    @staticmethod
    def of(text: str) -> Told:
        """The inverse of `to_text`."""
        given = json.loads(text)
        return Told(given["messages"], given["given"], [Answered(*a) for a in given["answers"]])

    def up_to(self, turn: int, answer: str) -> Told:
        """The dialogue up to a turn, with another answer."""
        messages = [*self.messages[:turn], {"role": "assistant", "content": answer}]
        return Told(messages, self.given, [])


def dialogue_record(
    dialogue: Dialogue, made: Document, template: Template, marks: Marks, train_on: str
) -> Told:
    """The information kept about a dialogue and its document."""
    text = rendered(dialogue, template, train_on)
    turns = answered(dialogue.messages)[-len(text.answers) :]
    answers = []
    for turn, answer in zip(turns, text.answers, strict=True):
        inside = np.flatnonzero((made.begin < answer.end) & (made.end > answer.start))
        after = np.flatnonzero((made.begin >= answer.end) & (made.end <= answer.stop))
        if len(inside):
            first, last = int(inside[0]), int(inside[-1])
            begin, end = int(made.begin[first]), min(answer.end, int(made.end[last]))
            said = marks.shown(text.text[max(begin, answer.start) : end])
            stop = int(after[-1]) if len(after) else -1
            answers.append(
                Answered(turn, first, last + 1, max(0, answer.start - begin), said, stop)
            )
    return Told(marks.shown(dialogue.messages), marks.shown(dialogue.given), answers)


class Reteller:
    """Renders and tokenises dialogues with its own tokenizer and chat template.

    `template`: "auto" for the tokenizer's own, or as `template` of the data "sft".
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str = "auto",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        given = None if template == "auto" else template
        self._tokenizer = tokenizer
        try:
            self._template = template_of(given, tokenizer, options=options)
            self._marks = Marks(tokenizer, self._template)
        except RunError as error:
            raise _for_teachers(error) from None

    def whole(self, known: Told) -> tuple[np.ndarray, Told]:
        """The ids of a dialogue whose last turn is an answer, and the positions of its answers."""
        try:
            dialogue = self._marks.hidden(_dialogue(known))
            text = rendered(dialogue, self._template)
            if dialogue.spelled:
                made = document(text, self._marks, self._tokenizer, bos=[], eos=True)
            else:
                (made,) = documents([text], self._tokenizer, bos=[], eos=True)
            return made.ids, dialogue_record(dialogue, made, self._template, self._marks, "all")
        except RunError as error:
            raise _for_teachers(error) from None

    def prompt(self, known: Told, answer: Answered) -> np.ndarray:
        """The ids of everything before an answer, with the template's generation prompt."""
        try:
            template = self._template
            turns = replace(_dialogue(known), messages=known.messages[: answer.turn])
            dialogue = self._marks.hidden(turns)
            text = template.of(dialogue).render(dialogue, header=True)
        except RunError as error:
            raise _for_teachers(error) from None
        text = text[: len(text) - answer.before]
        if dialogue.spelled:
            return np.array(self._marks.encode(text).ids, np.int64)
        found = self._tokenizer(text, add_special_tokens=False, verbose=False)
        return np.array(found["input_ids"], np.int64)


def _dialogue(known: Told) -> Dialogue:
    return Dialogue(known.messages, "a dialogue", known.given)


def _for_teachers(error: RunError) -> RunError:
    return RunError(f"a teacher's chat template: {str(error).replace('in [data]', 'in [teacher]')}")

"""Dialogues that student and teacher each read in their own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np
from kdcore_sft import DIALOGUE, Answered, Reteller, Told
from kdcore_sft.messages import joined, thoughts_of

from kdcore import Batch, Piece, Prompt, Retokenizer, Run, Spans, columns_of, on_host

_LOOKED_AT = 1024  # rows


class OwnTemplate:
    """The teacher's version of a student's dialogue, in its own template.

    Spans cover the answers, and the tokens that end answers are matched to each other; nothing else
    of the templates is compared.
    """

    def __init__(self, reteller: Reteller, retokenizer: Retokenizer) -> None:
        self._reteller, self._retokenizer = reteller, retokenizer

    def piece(self, batch: Batch, start: int, ids: np.ndarray) -> Piece | None:
        """The teacher's piece for the one at a flat position; None if it is not a dialogue."""
        text = columns_of(batch).at(start).get(DIALOGUE)
        if not isinstance(text, str):
            return None
        known, ours = Told.of(text), ids.tolist()
        if batch.split.written:
            known = self._answered_anew(known, ours, self._first_answer(batch, start, len(ids)))
        if not known.answers or not known.answers[-1].text.strip():
            return Piece(self._retokenizer.piece(ours, whole=True).ids, Spans.joined([]))
        theirs, found = self._reteller.whole(known)
        by_turn = {each.turn: each for each in found.answers}
        pairs = [(one, by_turn[one.turn]) for one in known.answers if one.turn in by_turn]
        spans = [
            self._spans(ours, theirs.tolist(), one, other, _same_text(known, one, other))
            for one, other in pairs
        ]
        return Piece(theirs.tolist(), Spans.joined(spans))

    def prompt(self, prompt: Prompt) -> Sequence[int] | None:
        """The teacher's prompt for an answer; None if it is not a dialogue, () if truncated."""
        text = prompt.columns.get(DIALOGUE)
        if not isinstance(text, str):
            return None
        known = Told.of(text)
        asked = next((each for each in known.answers if each.first == len(prompt.ids)), None)
        return () if asked is None else self._reteller.prompt(known, asked).tolist()

    @staticmethod
    def _first_answer(batch: Batch, start: int, length: int) -> int:
        """The number of prompt tokens in a written piece."""
        valid = on_host(batch).valid
        inside = valid[(valid >= start) & (valid < start + length)]
        return int(inside[0]) + 1 - start if len(inside) else length

    def _answered_anew(self, known: Told, ids: Sequence[int], prompt: int) -> Told:
        """The dialogue up to the generated turn, with the generated answer."""
        asked = next((each for each in known.answers if each.first == prompt), None)
        written = list(ids[prompt:])
        if asked is None or not written:  # its prompt was truncated
            return known._replace(answers=[])
        ended = not self._retokenizer.our_bytes[written[-1]]
        said = written[: len(written) - ended]
        spelled = b"".join(self._retokenizer.our_bytes[each] for each in said)
        text, end = whole_characters(spelled), prompt + len(said)
        ended = ended and len(text.encode()) == len(spelled)
        answer = Answered(asked.turn, prompt, end, 0, text, end if ended else -1)
        return known.up_to(asked.turn, text)._replace(answers=[answer])

    def _spans(
        self,
        ours: Sequence[int],
        theirs: Sequence[int],
        one: Answered,
        other: Answered,
        text: str,
    ) -> Spans:
        """The spans of one answer, as far as both have its text, and of its end token."""
        found = self._retokenizer.within(
            ours[one.first : one.end], theirs[other.first : other.end], text
        ).shifted(one.first, other.first)
        if one.stop < 0 or other.stop < 0:
            return found
        begin, end = (np.array([[one.stop, other.stop]]) + n for n in (0, 1))
        return Spans.joined([found, Spans(begin[:, 0], end[:, 0], begin[:, 1], end[:, 1])])


def _same_text(known: Told, one: Answered, other: Answered) -> str:
    """The text of an answer that both templates write; empty if they write it differently.

    One of them may strip it, or write something of its own before it, such as an empty thought.
    """
    if one.text == other.text:
        return one.text
    shorter, longer = sorted((one.text.strip(), other.text.strip()), key=len)
    if shorter == longer:
        return shorter
    message = known.messages[one.turn]
    is_content = shorter == joined(message.get("content")).strip() and not thoughts_of(message)
    return shorter if is_content and longer.endswith(shorter) else ""


def whole_characters(spelled: bytes) -> str:
    """The text up to the first bytes that are not valid characters."""
    try:
        return spelled.decode()
    except UnicodeDecodeError as error:
        return spelled[: error.start].decode()


def first_dialogue(run: Run) -> tuple[Told, np.ndarray] | None:
    """The first dialogue that begins a row, among the first rows, and that row's ids."""
    for row in islice(run.rows("train"), _LOOKED_AT):
        given = row.get("columns") or {}
        text = (given if isinstance(given, Mapping) else given[0]).get(DIALOGUE)
        if isinstance(text, str):
            return Told.of(text), row["input_ids"]
    return None


def end_of_turns(known: Told, ids: np.ndarray, reteller: Reteller) -> tuple[int, int] | None:
    """The ids that end an answer on both sides, read off a document."""
    theirs, found = reteller.whole(known)
    for one in known.answers:
        for other in found.answers:
            if one.turn == other.turn and min(one.stop, other.stop) >= 0:
                return int(ids[one.stop]), int(theirs[other.stop])
    return None

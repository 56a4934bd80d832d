"""Locate the turns of a dialogue in its rendered text.

No text search: the dialogue is rendered again with a mark in place of a turn, and the turn is what
lies between the template's text before and after the mark. It therefore does not matter whether the
same words occur elsewhere, whether the template strips them, or how they are tokenised.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kdcore import RunError
from kdcore_sft.formats import Dialogue
from kdcore_sft.forms import MARK
from kdcore_sft.messages import REASONING, Message, says_something
from kdcore_sft.templates import Refused, Template


@dataclass(frozen=True)
class Answer:
    """Characters `start` to `end` are the answer; those up to `stop` end its turn."""

    start: int
    end: int
    stop: int


@dataclass(frozen=True)
class Rendered:
    """A dialogue as text, with the answers to train on.

    `ended`: the template ends the last answer; otherwise the tokenizer's eos has to.
    """

    text: str
    answers: Sequence[Answer]
    ended: bool


def answered(messages: Sequence[Message]) -> list[int]:
    """The non-empty assistant turns to train on."""
    said = (n for n, each in enumerate(messages) if each["role"] == "assistant")
    return [n for n in said if messages[n].get("train", True) and says_something(messages[n])]


def rendered(dialogue: Dialogue, template: Template, train_on: str = "all") -> Rendered:
    """A dialogue as text. Its last turn must be a trained answer."""
    template = template.of(dialogue)
    text = template.render(dialogue)
    turns = answered(dialogue.messages)[-1 if train_on == "last" else 0 :]
    assert turns[-1] == len(dialogue.messages) - 1
    answers = [_answer(dialogue, turn, text, template) for turn in turns]
    last = answers[-1]
    ended = last.stop > last.end
    if not ended:
        # Trailing blanks are not part of the answer; trailing words are trained with it.
        text = text if text[last.end :].strip() else text[: last.end]
        answers[-1] = Answer(last.start, last.end, len(text))
    return Rendered(text, answers, ended)


def _answer(dialogue: Dialogue, turn: int, text: str, template: Template) -> Answer:
    start = _start(dialogue, turn, text, template)
    ends = None if start is None else _end(dialogue, turn, text, start, template)
    if start is None or ends is None or start > ends[0]:
        raise RunError(
            f"{dialogue.where}: the chat template alters message {turn + 1}, "
            "so its tokens cannot be located; set another template in [data]"
        )
    if not text[start : ends[0]].strip():
        keys = ", ".join(sorted(dialogue.messages[turn].keys() - {"role"}))
        raise RunError(
            f"{dialogue.where}: the chat template omits message {turn + 1}, which has "
            f"{keys}; set another template in [data]"
        )
    return Answer(start, *ends)


def _around(dialogue: Dialogue, turn: int, template: Template, *without: str) -> tuple[str, str]:
    """The template's text before and after the content of a turn."""
    parts = _parts(dialogue, turn, template, *without)
    if len(parts) != 2:
        raise RunError(
            f"{dialogue.where}: the chat template writes message {turn + 1} {len(parts) - 1} "
            "times instead of once; set another template in [data]"
        )
    return parts[0], parts[1]


def _parts(dialogue: Dialogue, turn: int, template: Template, *without: str) -> list[str]:
    messages = list[Message](dialogue.messages)
    kept = {key: value for key, value in messages[turn].items() if key not in without}
    messages[turn] = {**kept, "content": MARK}
    return template.render(replace(dialogue, messages=messages)).split(MARK)


def _start(dialogue: Dialogue, turn: int, text: str, template: Template) -> int | None:
    """Where generation starts: after the template's prompt for the assistant's turn.

    A template without such a prompt may still write a header; the answer then begins after it.
    """
    asked = _asked(dialogue, turn, template)
    if asked is not None and text.startswith(asked) and template.has_header:
        return len(asked)
    before = _before(dialogue, turn, template)
    if asked is not None and text.startswith(asked):
        header = before[len(asked) :] if before.startswith(asked) else ""
        if not header.strip():
            return len(asked)
    return len(before) if text.startswith(before) else None


def _before(dialogue: Dialogue, turn: int, template: Template) -> str:
    """The text before a turn. Reasoning comes before the content, and belongs to the turn."""
    message = dialogue.messages[turn]
    calls = [key for key in _CALLS if key in message]
    try:
        before, _ = _around(dialogue, turn, template, *calls)
    except Refused:
        before, _ = _around(_alone(dialogue, turn), turn, template, *calls)
    if not any(key in message for key in REASONING):
        return before
    thoughtless, _ = _around(_alone(dialogue, turn), turn, template, *calls, *REASONING)
    return os.path.commonprefix([before, thoughtless])  # noqa: RUF071 # characters are meant


_CALLS = ("tool_calls", "function_call")


def _asked(dialogue: Dialogue, turn: int, template: Template) -> str | None:
    try:
        return template.render(replace(dialogue, messages=dialogue.messages[:turn]), header=True)
    except Refused:  # some templates require a user turn first
        return None


def _end(
    dialogue: Dialogue, turn: int, text: str, start: int, template: Template
) -> tuple[int, int] | None:
    """Where the answer ends, and where the token that ends the turn does."""
    calls = [key for key in _CALLS if key in dialogue.messages[turn]]
    try:
        _, after = _around(dialogue, turn, template, *calls)
    except Refused:  # the following turns may need the calls
        return _end_by_mark(dialogue, turn, text, start, template)
    end = len(text) - len(after)
    if text.endswith(after):
        return end, _stop(text, end, template)
    if not calls:
        return None
    # Tool calls may end with another token than text.
    rest = after[_stop(after, 0, template) :]
    stop = len(text) - len(rest)
    mark = next((each for each in template.ends if text[:stop].endswith(each)), None)
    if mark is not None and rest != after and text.endswith(rest):
        return stop - len(mark), stop
    return _end_by_mark(dialogue, turn, text, start, template)


def _end_by_mark(
    dialogue: Dialogue, turn: int, text: str, start: int, template: Template
) -> tuple[int, int] | None:
    """By the last occurrence of the token that would end the turn if it were the last and text."""
    _, after = _around(_alone(dialogue, turn), turn, template, *_CALLS)
    blanks = len(after) - len(after.lstrip())
    mark = after[blanks : _stop(after, 0, template)]
    limit = len(text)
    if turn + 1 < len(dialogue.messages):
        before, _ = _around(dialogue, turn + 1, template)
        limit = len(before) if text.startswith(before) else 0
    at = text.rfind(mark, start, limit) if mark else -1
    return None if at < 0 else (at, at + len(mark))


def _alone(dialogue: Dialogue, turn: int) -> Dialogue:
    """The dialogue up to and including a turn."""
    return replace(dialogue, messages=dialogue.messages[: turn + 1])


def _stop(text: str, end: int, template: Template) -> int:
    """Where the token that ends the turn does, if only blanks precede it."""
    blanks = len(text) - end - len(text[end:].lstrip())
    begin = end + blanks
    mark = next((each for each in template.ends if text.startswith(each, begin)), None)
    return end if mark is None else begin + len(mark)


def prompts(dialogue: Dialogue, template: Template) -> dict[int, tuple[int, int]]:
    """The character range of each turn that is not the assistant's, where it can be located."""
    template = template.of(dialogue)
    text = template.render(dialogue)
    found = dict[int, tuple[int, int]]()
    for turn, message in enumerate(dialogue.messages):
        if message["role"] != "assistant":
            before, *after = _parts(dialogue, turn, template)
            end = len(text) - len(after[0]) if len(after) == 1 else -1
            if len(before) <= end and text.startswith(before) and text.endswith(after[0]):
                found[turn] = (len(before), end)
    return found

"""Where the turns of a dialogue lie in its rendered text.

Nothing is searched for: a turn lies between what the template writes before and after it, which is
seen by rendering the dialogue again with a mark in its place. So it does not matter whether the
same words stand elsewhere, whether the template strips them, or what tokens they become.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdcore import RunError
from kdcore_sft.formats import Dialogue, Message
from kdcore_sft.templates import Template

_MARK = "\ue000kdcore\ue001"  # of the private use area, and no blanks that could be stripped


@dataclass(frozen=True)
class Answer:
    """Characters `start` to `end` are the answer, and those up to `stop` what ends its turn."""

    start: int
    end: int
    stop: int


@dataclass(frozen=True)
class Rendered:
    """A dialogue as text, with the answers that are to be learned.

    `ended`: the template itself ends the last answer; else the tokenizer's eos must.
    """

    text: str
    answers: Sequence[Answer]
    ended: bool


def answered(messages: Sequence[Message]) -> list[int]:
    """The turns of the assistant's that say something."""
    said = (n for n, each in enumerate(messages) if each["role"] == "assistant")
    return [n for n in said if messages[n]["content"].strip()]


def rendered(dialogue: Dialogue, template: Template, train_on: str = "all") -> Rendered:
    """A dialogue as text. Its last turn must be an answer that says something."""
    text = template.render(dialogue.messages, dialogue.where)
    turns = answered(dialogue.messages)[-1 if train_on == "last" else 0 :]
    assert turns[-1] == len(dialogue.messages) - 1
    answers = [_answer(dialogue, turn, text, template) for turn in turns]
    last = answers[-1]
    ended = last.stop > last.end
    if not ended:
        # Blanks that end the text are no part of the answer; words that do are learned with it.
        text = text if text[last.end :].strip() else text[: last.end]
        answers[-1] = Answer(last.start, last.end, len(text))
    return Rendered(text, answers, ended)


def _answer(dialogue: Dialogue, turn: int, text: str, template: Template) -> Answer:
    before, after = _around(dialogue, turn, template)
    start = _start(dialogue, turn, text, before, template)
    end = len(text) - len(after)
    if start is None or start > end or not text.endswith(after):
        raise RunError(
            f"{dialogue.where}: the chat template makes something else of message {turn + 1}, "
            "so that its tokens cannot be told; set another template in [data]"
        )
    return Answer(start, end, _stop(text, end, template))


def _around(dialogue: Dialogue, turn: int, template: Template) -> tuple[str, str]:
    """What the template writes before and after a turn."""
    messages = list[Message](dialogue.messages)
    messages[turn] = {**messages[turn], "content": _MARK}
    parts = template.render(messages, dialogue.where).split(_MARK)
    if len(parts) != 2:
        raise RunError(
            f"{dialogue.where}: the chat template writes message {turn + 1} {len(parts) - 1} "
            "times, and must write it once; set another template in [data]"
        )
    return parts[0], parts[1]


def _start(dialogue: Dialogue, turn: int, text: str, before: str, template: Template) -> int | None:
    """Where the model goes on by itself: after what it is given when it is asked.

    A template that cannot ask may still write a header; then the answer begins after that.
    """
    asked = _asked(dialogue, turn, template)
    if asked is not None and text.startswith(asked):
        header = before[len(asked) :] if before.startswith(asked) else ""
        if template.has_header or not header.strip():
            return len(asked)
    return len(before) if text.startswith(before) else None


def _asked(dialogue: Dialogue, turn: int, template: Template) -> str | None:
    try:
        return template.render(dialogue.messages[:turn], dialogue.where, header=True)
    except RunError:  # it may want a user's turn first
        return None


def _stop(text: str, end: int, template: Template) -> int:
    """Where the token ends that ends the turn, if nothing but blanks lies before it."""
    blanks = len(text) - end - len(text[end:].lstrip())
    begin = end + blanks
    mark = next((each for each in template.ends if text.startswith(each, begin)), None)
    return end if mark is None else begin + len(mark)


def prompts(dialogue: Dialogue, template: Template) -> dict[int, tuple[int, int]]:
    """The characters of each turn that is not the assistant's, where they can be told."""
    text = template.render(dialogue.messages, dialogue.where)
    found = dict[int, tuple[int, int]]()
    for turn, message in enumerate(dialogue.messages):
        if message["role"] != "assistant":
            before, after = _around(dialogue, turn, template)
            end = len(text) - len(after)
            if text.startswith(before) and text.endswith(after) and len(before) <= end:
                found[turn] = (len(before), end)
    return found

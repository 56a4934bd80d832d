"""Truncation of dialogues that are longer than a row.

The answer has priority. As long as it fits next to the template's own tokens, only the prompt's
texts (system and user) are shortened, the longest first, and the dialogue is rendered again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Literal

from kdcore_sft.answers import answered, prompts, rendered
from kdcore_sft.formats import Dialogue
from kdcore_sft.masking import Document
from kdcore_sft.messages import Message
from kdcore_sft.templates import Template

_LEAST = 8  # 1 / the share of a row that a text keeps while exchanges can be dropped instead
_OPENING = ("system", "developer")
_PROMPT = 4  # 1 / the share of a row that the prompt keeps if the answer does not fit


@dataclass(frozen=True)
class _Text:
    """The location of a turn's text: its characters, and the tokens entirely within it."""

    characters: tuple[int, int]
    tokens: tuple[int, int]

    def __len__(self) -> int:
        return self.tokens[1] - self.tokens[0]


@dataclass(frozen=True)
class Cut:
    """A truncated dialogue, and the share of its prompt's texts that is left."""

    document: Document
    left: float
    dialogue: Dialogue


@dataclass(frozen=True)
class Cutter:
    """Shortens dialogues to `block` tokens."""

    template: Template
    encode: Callable[[Dialogue], Document]
    block: int
    side: Literal["left", "right"]
    train_on: Literal["all", "last"]

    def cut(self, dialogue: Dialogue) -> Cut:
        """The dialogue in at most `block` tokens. Part of its answer is always trained."""
        *longer, single = self._shorter(dialogue)
        for some in longer:
            cut = self._shortened(some, self.block, self.block // _LEAST)
            if cut is not None:
                return cut
        return self._shortened(single, self.block, 0) or self._squeezed(single)

    def _shorter(self, dialogue: Dialogue) -> Iterator[Dialogue]:
        """The dialogue with fewer and fewer exchanges, down to one."""
        turns = answered(dialogue.messages)
        opening = list(takewhile(lambda each: each["role"] in _OPENING, dialogue.messages))
        # An exchange begins with a user turn: a tool's answer makes no sense without its call.
        asked = [n for n, each in enumerate(dialogue.messages) if each["role"] == "user"]
        yield dialogue
        if self.train_on == "all":
            for turn in reversed(turns[:-1]):
                yield replace(dialogue, messages=dialogue.messages[: turn + 1])
        else:
            for begin in [n for n in asked if len(opening) < n < turns[-1]]:
                yield replace(dialogue, messages=[*opening, *dialogue.messages[begin:]])

    def _shortened(self, dialogue: Dialogue, room: int, least: int) -> Cut | None:
        """With the prompt's texts shortened to fit the room; None if they would be too short."""
        before: int | None = None
        while True:
            document = self.encode(dialogue).without_rest()
            excess = len(document) - room
            if excess <= 0 and before is None:
                return Cut(document, 1, dialogue)
            texts = self._texts(dialogue, document)
            lengths = [len(each) for each in texts.values()]
            before = sum(lengths) if before is None else before
            if excess <= 0:
                return Cut(document, sum(lengths) / before, dialogue)
            cap = _cap(lengths, excess)
            if cap is None or cap < least:
                return None
            text = rendered(dialogue, self.template, self.train_on).text
            messages = list[Message](dialogue.messages)
            for turn, each in texts.items():
                if len(each) > cap:
                    kept = slice(*self._kept(document, each, cap))
                    messages[turn] = {**messages[turn], "content": text[kept]}
            dialogue = replace(dialogue, messages=messages)

    def _texts(self, dialogue: Dialogue, document: Document) -> dict[int, _Text]:
        found = dict[int, _Text]()
        for turn, characters in prompts(dialogue, self.template).items():
            tokens = document.within(*characters)
            if len(tokens):
                found[turn] = _Text(characters, (int(tokens[0]), int(tokens[-1]) + 1))
        return found

    def _kept(self, document: Document, text: _Text, cap: int) -> tuple[int, int]:
        """The characters covered by `cap` whole tokens of a text."""
        if self.side == "right":
            at = text.tokens[0] + cap
            while at > text.tokens[0] and document.begin[at] < document.end[at - 1]:
                at -= 1
            begin = text.characters[0]
            return begin, int(document.end[at - 1]) if at > text.tokens[0] else begin
        at = text.tokens[1] - cap
        while at < text.tokens[1] and document.begin[at] < document.end[at - 1]:
            at += 1
        end = text.characters[1]
        return int(document.begin[at]) if at < text.tokens[1] else end, end

    def _squeezed(self, dialogue: Dialogue) -> Cut:
        """A single exchange whose answer does not fit next to the template's tokens."""
        whole = self.encode(dialogue).without_rest()
        texts = self._texts(dialogue, whole)
        prompt = max(1, self.block // _PROMPT)
        header = whole.first - max((each.tokens[1] for each in texts.values()), default=0)
        answer = len(whole) - whole.first
        if min(header, prompt) + answer <= self.block:
            return self._pushed_out(dialogue, whole, texts.values(), len(whole) - self.block)
        cut = self._shortened(dialogue, prompt + answer, 0)
        if cut is None:
            cut = self._pushed_out(dialogue, whole, texts.values(), len(whole) - answer - prompt)
        return replace(cut, document=cut.document.part(0, self.block))

    @staticmethod
    def _pushed_out(
        dialogue: Dialogue, whole: Document, texts: Collection[_Text], begin: int
    ) -> Cut:
        """The tokens from `begin` on."""
        left = sum(max(0, each.tokens[1] - max(begin, each.tokens[0])) for each in texts)
        document = whole.part(begin, len(whole))
        return Cut(document, left / max(1, sum(map(len, texts))), dialogue)


def _cap(lengths: Sequence[int], excess: int) -> int | None:
    """The maximum length of a text, such that together the texts lose at least `excess` tokens."""
    if sum(lengths) < excess:
        return None
    caps = range(max(lengths, default=0), -1, -1)
    return next(cap for cap in caps if sum(max(0, n - cap) for n in lengths) >= excess)

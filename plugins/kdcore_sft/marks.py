"""Keep special tokens that occur in the texts of a dialogue as text.

For rendering, each such occurrence is replaced by a private-use character, so that the special
tokens in the rendered text are the template's. For tokenisation it is the other way round: in a
copy of the tokenizer each special token is renamed to that character, and its original name is
ordinary text. The ids are therefore those of the whole dialogue, and only the template's special
tokens are special.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcore import RunError, SpecialTokens
from kdcore_sft.formats import Dialogue
from kdcore_sft.messages import Message
from kdcore_sft.templates import Template

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_FIRST = 0x100000  # of the last private-use plane


@dataclass(frozen=True)
class Encoded:
    """Ids, and for each the characters from `begin` to `end` it covers."""

    ids: Sequence[int]
    offsets: np.ndarray  # [tokens, 2]


class Marks:
    """A tokenizer's special tokens, and the characters that replace them while they are text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
        self._tokenizer, self._template = tokenizer, template
        self._special = SpecialTokens(tokenizer)
        self.words = bool(self._special.mistaken)
        self.names = self._special.renamable
        self._other = {name: chr(_FIRST + n) for n, name in enumerate(self.names)}
        self._other |= {other: name for name, other in self._other.items()}
        self._spelled = re.compile("|".join(map(re.escape, self.names)) or "(?!)")
        # A template that looks for a special token in answers, such as </think>, has to see it,
        # and the opening one too.
        all_of_it = filter(None, [template, template.for_tools])
        known = {text for each in all_of_it for text in each.looks_for}
        known |= {each.replace("</", "<") for each in known}
        self._kept = {name for name in self.names if any(name in each for each in known)}

    def found(self, dialogue: Dialogue) -> list[str]:
        """The special tokens in a dialogue's texts, except those that its template looks for."""
        found = list[str]()
        self._hide(dialogue, found.append)
        return found

    def hidden(self, dialogue: Dialogue) -> Dialogue:
        """The dialogue with a character in place of each special token in its texts."""
        found = list[str]()
        hidden = self._hide(dialogue, found.append)
        if not found:
            return dialogue
        texts = json.dumps(
            [dialogue.messages, self._template.of(dialogue).given(dialogue)], ensure_ascii=False
        )
        if any(chr(_FIRST + n) in texts for n in range(len(self.names))):
            raise RunError(
                f"{dialogue.where} has {found[0]} in its text together with characters of the "
                "private use area that stand for such tokens here: take one of them out"
            )
        return replace(hidden, spelled=True)

    def shown(self, value: Any) -> Any:
        """Texts with the original special tokens restored."""
        others = {other: name for name, other in self._other.items() if name in self.names}
        if not others:
            return value
        pattern = re.compile("|".join(map(re.escape, others)))
        return _each_text(value, lambda text: pattern.sub(lambda found: others[found[0]], text))

    def encode(self, text: str) -> Encoded:
        """The ids of a rendered dialogue with masked tokens; offsets refer to this text."""
        swapped, begins, ends = list[str](), list[int](), list[int]()
        for match in self._pieces.finditer(text):
            piece = self._other.get(match[0], match[0])
            swapped.append(piece)
            if piece is match[0]:
                begins += range(match.start(), match.end())
                ends += range(match.start() + 1, match.end() + 1)
            else:
                begins += [match.start()] * len(piece)
                ends += [match.end()] * len(piece)
        encoded = self._renamed.encode("".join(swapped), add_special_tokens=False)
        offsets = [
            (begins[begin], ends[end - 1]) if end > begin else (_at(begins, ends, begin),) * 2
            for begin, end in encoded.offsets
        ]
        return Encoded(encoded.ids, np.array(offsets, np.int64).reshape(-1, 2))

    def _hide(self, dialogue: Dialogue, found: Callable[[str], None]) -> Dialogue:
        def swap(text: str, kept: set[str]) -> str:
            def other(match: re.Match[str]) -> str:
                if match[0] in kept:
                    return match[0]
                found(match[0])
                return self._other[match[0]]

            return self._spelled.sub(other, text)

        def turn(message: Message) -> Message:
            kept = self._kept if message["role"] == "assistant" else set[str]()
            hidden = _each_text(message, lambda text: swap(text, kept))
            return {**hidden, "role": message["role"]}

        given = _each_text(dialogue.given, lambda text: swap(text, set()))
        messages = [turn(each) for each in dialogue.messages]
        return replace(dialogue, messages=messages, given=given)

    @cached_property
    def _pieces(self) -> re.Pattern[str]:
        others = "".join(chr(_FIRST + n) for n in range(len(self.names)))
        return re.compile(f"{self._spelled.pattern}|[{others}]|.", re.DOTALL)

    @cached_property
    def _renamed(self) -> Tokenizer:
        """The tokenizer with its special tokens renamed, each with its original id."""
        return self._special.renamed({name: self._other[name] for name in self.names})


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _each_text(each, change) for key, each in value.items()}
    if isinstance(value, list):
        return [_each_text(each, change) for each in value]
    return value


def _at(begins: Sequence[int], ends: Sequence[int], place: int) -> int:
    return begins[place] if place < len(begins) else (ends[-1] if ends else 0)

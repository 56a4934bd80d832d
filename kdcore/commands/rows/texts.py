"""The exact text of each token, and safe display of arbitrary text."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NO_LETTER = "\ufffd"  # the decoding of bytes that form no character, or not yet


def exact_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text that each token adds; joined, they are the decoded row, special tokens included.

    A character of several tokens appears at the last of them, "" at the others.
    """
    texts = [""] * len(ids)
    before = begin = 0  # tokens from `before` on are context, those from `begin` on are pending
    for end in range(1, len(ids) + 1):
        new = _decoded(tokenizer, ids[before:end])[len(_decoded(tokenizer, ids[before:begin])) :]
        if end == len(ids) or not new.endswith(_NO_LETTER):
            texts[end - 1] = new
            before, begin = begin, end
    return texts


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(
        tokenizer.decode([*ids], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    )


def visible(text: str) -> str:
    """The text with symbols or numbers in place of unprintable characters.

    Line breaks stay.
    """
    return "".join(map(_visible, text))


def _visible(letter: str) -> str:
    code = ord(letter)
    if letter == "\n" or letter.isprintable() or unicodedata.category(letter) == "Zs":
        return letter
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"\\u{code:04x}"

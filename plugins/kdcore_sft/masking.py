"""Dialogues as ids, with labels on answers.

A whole dialogue is tokenised at once, so ids are those that the model sees in use. Trained tokens
are found by the characters they cover, never by their ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdcore import Row, RunError
from kdcore_sft.answers import Rendered
from kdcore_sft.marks import Marks

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PreTrainedTokenizerBase

NOT_TRAINED = -100


@dataclass(frozen=True, eq=False)
class Document:
    """A tokenised dialogue. Token n covers the characters `begin[n]` to `end[n]`."""

    ids: np.ndarray  # [tokens]
    begin: np.ndarray
    end: np.ndarray
    trained: np.ndarray  # bool

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def first(self) -> int:
        """The first trained token."""
        return int(np.argmax(self.trained))

    def part(self, begin: int, end: int) -> Document:
        """A range of tokens."""
        some = slice(begin, end)
        return Document(self.ids[some], self.begin[some], self.end[some], self.trained[some])

    def without_rest(self) -> Document:
        """The tokens up to the last trained one."""
        return self.part(0, len(self) - int(self.trained[::-1].argmax()))

    def within(self, begin: int, end: int) -> np.ndarray:
        """The tokens entirely within these characters."""
        return np.flatnonzero((self.begin >= begin) & (self.end <= end) & (self.end > begin))

    def row(self) -> Row:
        """Ids and labels."""
        return {
            "input_ids": self.ids,
            "labels": np.where(self.trained, self.ids, NOT_TRAINED),
        }


def documents(
    dialogues: Sequence[Rendered],
    tokenizer: PreTrainedTokenizerBase,
    *,
    bos: Sequence[int],
    eos: bool,
) -> list[Document]:
    """Each dialogue as ids, with the tokenizer's eos if its template does not end it.

    `bos` are ids prepended to each, unless its template writes them.
    """
    if not dialogues:
        return []
    encoded = tokenizer(
        [each.text for each in dialogues],
        add_special_tokens=False,  # the template writes them
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return [
        _document(each, *pair, bos, _eos(each, tokenizer, eos))
        for each, pair in zip(dialogues, pairs, strict=True)
    ]


def document(
    dialogue: Rendered,
    marks: Marks,
    tokenizer: PreTrainedTokenizerBase,
    *,
    bos: Sequence[int],
    eos: bool,
) -> Document:
    """A dialogue whose texts contain special tokens, as ids."""
    encoded = marks.encode(dialogue.text)
    end = _eos(dialogue, tokenizer, eos)
    return _document(dialogue, encoded.ids, encoded.offsets, bos, end)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Reject a tokenizer without character offsets."""
    if not tokenizer.is_fast:
        raise RunError(
            f"the tokenizer {tokenizer.name_or_path!r} cannot tell where its tokens begin and end "
            "in the text, so prompts cannot be masked; use one with a tokenizer.json"
        )


def _eos(dialogue: Rendered, tokenizer: PreTrainedTokenizerBase, wanted: bool) -> list[int]:
    if dialogue.ended or not wanted:
        return []
    if tokenizer.eos_token_id is None:
        raise RunError(
            f"the chat template does not end the answers, and the tokenizer "
            f"{tokenizer.name_or_path!r} has no end-of-sequence token; set eos = false in [data]"
        )
    return [int(tokenizer.eos_token_id)]


def _document(
    dialogue: Rendered,
    ids: Sequence[int],
    offsets: npt.ArrayLike,
    bos: Sequence[int],
    eos: Sequence[int],
) -> Document:
    raw = np.array(offsets, np.int64).reshape(-1, 2)
    end = raw[:, 1]
    # Some tokenizers exclude blanks from offsets: a token begins where the previous one ended.
    # Tokens that share a character all begin with it.
    begin = np.minimum(raw[:, 0], np.concatenate([[0], end[:-1]]))
    trained = np.zeros(len(ids), bool)
    for answer in dialogue.answers:
        trained |= (begin < answer.stop) & (end > answer.start)
    first = [] if list(ids[: len(bos)]) == list(bos) else bos
    nowhere, at = np.zeros(len(first), np.int64), np.full(len(eos), len(dialogue.text))
    return Document(
        np.array([*first, *ids, *eos], np.int64),
        np.concatenate([nowhere, begin, at]),
        np.concatenate([nowhere, end, at]),
        np.concatenate([nowhere.astype(bool), trained, np.ones(len(eos), bool)]),
    )

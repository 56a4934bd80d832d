"""Long texts, tokenised in windows, with the same ids as the whole text.

A tokenizer takes over a hundred bytes per character of a single call. Windows overlap, and are
joined inside a run of tokens that both produce in the overlap: what BPE and Unigram produce after a
token border depends only on the text after it. Without such a run (a number of ten thousand digits,
in groups of three), the window grows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


LONG = 1 << 18  # characters above which a text is cut into windows
_OVERLAP = 1 << 12  # characters
_MARGIN = _OVERLAP // 4  # at both ends of the overlap, where tokens may differ from the final ones
_RUN = 16  # tokens that both windows must share


class _Window(NamedTuple):
    """The tokens of a part of a text; places count from the start of the whole text."""

    ids: np.ndarray  # int32 [tokens]
    begin: np.ndarray  # int64 [tokens]
    end: np.ndarray


def in_windows(
    text: str, tokenizer: PreTrainedTokenizerBase, *, size: int, **options: bool
) -> np.ndarray:
    """The ids of a text, without special tokens, int32."""
    found: list[np.ndarray] = []
    start, skip, end = 0, 0, min(size, len(text))
    window = _encoded(text, start, end, tokenizer, options)
    while end < len(text):
        after, further = end - _OVERLAP, min(end - _OVERLAP + size, len(text))
        following = _encoded(text, after, further, tokenizer, options)
        border = _border(window, following, after + _MARGIN, end - _MARGIN)
        if border is None or border[0] < skip:
            end = min(end + size, len(text))
            window = _encoded(text, start, end, tokenizer, options)
            continue
        found.append(window.ids[skip : border[0]])
        start, skip, end, window = after, border[1], further, following
    return np.concatenate([*found, window.ids[skip:]])


def _encoded(
    text: str, start: int, end: int, tokenizer: PreTrainedTokenizerBase, options: dict[str, bool]
) -> _Window:
    encoded = tokenizer(
        text[start:end],
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
        **options,
    )
    offsets = np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2) + start
    return _Window(np.array(encoded["input_ids"], np.int32), offsets[:, 0], offsets[:, 1])


def _border(one: _Window, other: _Window, least: int, most: int) -> tuple[int, int] | None:
    """The middle of a run of tokens that both have between two places: its index in each."""
    n, m = (int(np.searchsorted(each.begin, least)) for each in (one, other))
    run = 0
    while n < len(one.ids) and m < len(other.ids) and one.end[n] <= most:
        if _token(one, n) == _token(other, m):
            n, m, run = n + 1, m + 1, run + 1
            if run == _RUN:
                return n - _RUN // 2, m - _RUN // 2
            continue
        run = 0
        behind = one.begin[n] - other.begin[m]
        n, m = n + int(behind <= 0), m + int(behind >= 0)
    return None


def _token(window: _Window, n: int) -> tuple[int, int, int]:
    return window.ids[n], window.begin[n], window.end[n]

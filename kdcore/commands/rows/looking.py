"""Shared by `show --tokens` and `show --data`: token states, borders, and output."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcore.commands.output import tell
from kdcore.commands.rows.html import as_html
from kdcore.commands.rows.options import Looking
from kdcore.commands.rows.page import Page, State, Token
from kdcore.commands.rows.terminal import OnTerminal
from kdcore.commands.rows.texts import exact_texts
from kdcore.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def states_of(row: Any, valid: Mapping[State, np.ndarray]) -> list[State]:
    """The state of each token of a row; `valid` has the states of valid ones."""
    begins = borders(row)
    states: list[State] = ["first" if n in begins else "prompt" for n in range(len(row.input_ids))]
    for state, where in valid.items():
        for n in np.flatnonzero(where):
            states[n] = state
    return states


def borders(row: Any) -> dict[int, str]:
    """Where documents or their pieces begin in a row, and which they are."""
    document, offset = row.document, getattr(row, "offset", None)
    begins = np.diff(document) != 0
    if offset is not None:
        begins |= np.diff(offset) != 1
    return {
        n: f"document {document[n] + 1:,}" + _from(offset, n)
        for n in [0, *(int(n) + 1 for n in np.flatnonzero(begins))]
    }


def _from(offset: np.ndarray | None, n: int) -> str:
    within = 0 if offset is None else int(offset[n])
    return f" from its token {within + 1:,} on" if within else ""


def tokens_of(
    tokenizer: PreTrainedTokenizerBase,
    row: Any,
    states: Sequence[State],
    nll: Iterable[float] | None = None,
    score: Iterable[float] | None = None,
) -> list[Token]:
    """The tokens of a row with their texts."""
    ids = [int(each) for each in row.input_ids]
    unknown = [float("nan")] * len(ids)
    texts = exact_texts(tokenizer, ids)
    special = set(tokenizer.all_special_ids)
    columns = zip(ids, texts, states, nll or unknown, score or unknown, strict=True)
    return [
        Token(each, text, state, each in special, float(loss), float(rank))
        for each, text, state, loss, rank in columns
    ]


def never_valid(states: Iterable[State]) -> list[str]:
    """Why tokens are not trained on, with counts, as a sentence; empty if all are."""
    found = list(states)
    prompt, first = found.count("prompt"), found.count("first")
    why = [f"{prompt:,} of prompts"] if prompt else []
    why += [f"{first:,} that nothing stands before"] if first else []
    return [f"Never valid: {', '.join(why)}."] if why else []


def tell_pages(pages: Sequence[Page], looking: Looking, objects: Iterable[Any]) -> None:
    """Show pages on the terminal or as JSON, or write them to a named file."""
    if looking.html is not None:
        try:
            looking.html.write_text(as_html(pages, scores=looking.scores), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {looking.html}: {error.strerror}") from None
        print(f"written to {looking.html}", file=sys.stderr)
    if looking.as_json:
        lines = (json.dumps(each, ensure_ascii=False) for each in objects)
        print("[\n" + ",\n".join(lines) + "\n]")
    elif looking.html is None:
        for n, page in enumerate(pages):
            tell(*[""][: n > 0], OnTerminal(page, scores=looking.scores))


def json_row(tokens: Sequence[Token]) -> dict[str, list[Any]]:
    """The tokens of a row as columns; None for unknown numbers."""
    return {
        "tokens": [token.id for token in tokens],
        "text": [token.text for token in tokens],
        "state": [token.state for token in tokens],
        "nll": [_or_none(token.nll) for token in tokens],
        "score": [_or_none(token.score) for token in tokens],
    }


def _or_none(value: float) -> float | None:
    return None if value != value else value

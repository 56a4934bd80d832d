"""Completions -> rows of a split of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from kdcore.data.batch import OLD_LOG_PROBS, Row, Split
from kdcore.data.collate import NOT_TRAINED
from kdcore.data.packing import best_fit
from kdcore.data.where import SOURCE
from kdcore.models.completions import ANSWERS, FIRST, Completion

WRITTEN = Split("written", "", np.empty(0, np.int64), written=True)
"""The split of generated rows. Its documents are distinct within a step."""


def written_rows(
    answers: Sequence[Sequence[Completion]], block: int, rows: Literal["pack", "one"] | str
) -> list[Row]:
    """Rows of at most `block` tokens; `answers` holds the completions of each prompt of a step.

    Prompts have no labels. A completion that was cut has no end-of-text to train on.
    """
    pieces: list[Row] = [
        _piece(one, FIRST + prompt * ANSWERS + answer)
        for prompt, some in enumerate(answers)
        for answer, one in enumerate(some)
    ]
    if rows != "pack":
        return pieces
    fitted = best_fit(np.array([len(p["input_ids"]) for p in pieces], np.int32), block)
    places = [np.flatnonzero(fitted == at) for at in range(int(fitted.max(initial=-1)) + 1)]
    return [
        {
            **{key: np.concatenate([pieces[n][key] for n in some]) for key in _OF},
            "columns": [pieces[n]["columns"] for n in some],
        }
        for some in places
    ]


_OF = ("input_ids", "labels", OLD_LOG_PROBS, "document", "offset", "position")


def _piece(answer: Completion, document: int) -> Row:
    assert answer.prompt is not None, "the engine fills it in"
    prompt, ids = list(answer.prompt.ids), list(answer.ids)
    place = np.arange(len(prompt) + len(ids), dtype=np.int32)
    old = [math.nan] * len(ids) if answer.log_probs is None else list(answer.log_probs)
    return {
        "input_ids": np.array(prompt + ids, np.int32),
        "labels": np.array([NOT_TRAINED] * len(prompt) + ids, np.int32),
        OLD_LOG_PROBS: np.array([math.nan] * len(prompt) + old, np.float64),
        "document": np.full(len(place), document, np.int64),
        "offset": place,
        "position": place,
        "columns": {**answer.prompt.columns, SOURCE: answer.source},
    }

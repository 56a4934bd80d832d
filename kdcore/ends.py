"""The tokens at which a student has learned to stop: beside its eos, those that end a turn."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kdcore.batch import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ROWS = 256  # enough to have met each


def learned_ends(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The special tokens that end a stretch of what is learned, in the first rows.

    Empty where rows have no labels of their own, so that everything is learned.
    """
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    found = set[int]()
    for n in range(min(_ROWS, len(rows))):
        labels = rows[n].get("labels")
        if labels is not None:
            learned = np.append(np.asarray(labels) != -100, False)
            found.update(np.asarray(labels)[learned[:-1] & ~learned[1:]].tolist())
    return found & special


def add_ends(model: PreTrainedModel, ends: Collection[int]) -> None:
    """Let the model's own generation settings stop there too."""
    config = model.generation_config
    if ends and config is not None:
        own = config.eos_token_id
        config.eos_token_id = sorted({*(own if isinstance(own, list) else [own]), *ends} - {None})

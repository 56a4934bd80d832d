"""What makes two runs the same run: eight digits of a hash of what can change the result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping

from kdcore.references import replace_references
from kdcore.written import Written

_OF_RECIPE = ("name", "requires", "trust_remote_code", "log", "eval")
_OF_TRAIN = (
    "micro_batch",
    "chunk",
    "compile",
    "compile_trunk",
    "checkpointing",
    "workers",
    "non_finite",
    "log_every",
    "eval_every",
    "save_every",
    "save_keep",
)


def identity(
    table: Written, tokenizer_data: Written | None, identity_of: Callable[[str], str]
) -> str:
    """Eight hexadecimal digits of the merged table as typed; the order of keys does not matter.

    In place of `"@NAME"` stands that stage's own identity, so that its name does not matter
    either. `tokenizer_data` is given where it is not the stage's own data.
    """
    content = [what_counts(_by_identity(table, identity_of))]
    if tokenizer_data is not None:
        content.append(_by_identity(tokenizer_data, identity_of))
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _by_identity(table: Written, identity_of: Callable[[str], str]) -> dict[str, object]:
    return replace_references(table, lambda name: f"@{identity_of(name)}").plain_table()


def what_counts(table: Mapping[str, object]) -> dict[str, object]:
    """A stage's table without what cannot change its result; the seed even where it is missing."""
    counts = {"seed": 0, **{key: each for key, each in table.items() if key not in _OF_RECIPE}}
    train, selection = counts.get("train"), counts.get("selection")
    if isinstance(train, dict):
        counts["train"] = {
            key: value
            for key, value in train.items()
            if key not in _OF_TRAIN or (key == "micro_batch" and _ranks_within(selection))
        }
    return counts


def _ranks_within(selection: object) -> bool:
    """Whether a selection ranks in each micro-batch, so that their size is of consequence."""
    return isinstance(selection, dict) and selection.get("scope") == "micro_batch"

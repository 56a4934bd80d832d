"""The dialogue of a prompt, if [data] keeps it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kdcore import Prompt

MESSAGES = "messages"
"""The column in which `sft` keeps a dialogue, as JSON: `keep_columns = ["messages"]`."""


def asked_in(prompt: Prompt) -> Sequence[Mapping[str, Any]] | None:
    """The messages before the requested answer; None if the data does not keep them."""
    from kdcore_sft.answers import answered

    text = prompt.columns.get(MESSAGES)
    if not isinstance(text, str):
        return None
    messages: list[dict[str, Any]] = json.loads(text)
    turns = answered(messages)
    if not -len(turns) <= prompt.exchange < 0:
        return None
    before = messages[: turns[prompt.exchange]]
    return [{key: value for key, value in each.items() if key != "train"} for each in before]

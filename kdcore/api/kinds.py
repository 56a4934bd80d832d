"""The kinds of components that plugins provide."""

from __future__ import annotations

from collections.abc import Mapping

from kdcore.api.component import Component
from kdcore.api.contracts import (
    Data,
    Eval,
    Logger,
    Loss,
    Patch,
    Rollout,
    Selection,
    Teacher,
    Tokenizer,
)
from kdcore.api.jobs import Executor

KINDS: Mapping[str, type[Component]] = {
    "data": Data,
    "tokenizer": Tokenizer,
    "teacher": Teacher,
    "loss": Loss,
    "selection": Selection,
    "rollout": Rollout,
    "patch": Patch,
    "eval": Eval,
    "logger": Logger,
    "executor": Executor,
}
"""Every kind by its name for users. The hook of a kind is `kdcore_` and its plural."""

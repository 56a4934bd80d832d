"""The kinds of components that plugins provide."""

from __future__ import annotations

from collections.abc import Mapping

from kdcore.api.component import Component
from kdcore.api.data import Data, Rollout, Tokenizer
from kdcore.api.jobs import Executor
from kdcore.api.loss import Loss
from kdcore.api.observers import Eval, Logger
from kdcore.api.student import Patch
from kdcore.api.teacher import Teacher
from kdcore.api.tokens import Selection

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

"""A run's recipe as a tracker takes it: flat, plain values, and nothing that is secret."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from kdcore_panel.facts import flat, read_settings

Plain = bool | int | float | str

_SECRET_KEY = re.compile(
    r"(^|_)(password|passwd|secret|credentials?|authorization|api_?key)$"
    r"|^((hf|auth|access|api|write)_)?token$"
)
_SECRET = re.compile(r"\b(hf|sk|ghp|gho|glpat|xox[bp])[-_][A-Za-z0-9_-]{16,}")
_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")  # of https://user:password@host


def settings_of(folder: Path) -> Mapping[str, Plain]:
    """The resolved recipe of a run folder by dotted key, as in `--set`: "loss.1.use"."""
    values = {key: _plain(value) for key, value in flat(read_settings(folder))}
    return {key: value for key, value in values.items() if not _is_secret(key)}


def _is_secret(key: str) -> bool:
    return any(_SECRET_KEY.search(part) for part in key.lower().split("."))


def _plain(value: object) -> Plain:
    """Numbers as they are; lists as JSON; texts without what opens doors."""
    if isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return _SECRET.sub("***", _LOGIN.sub("", text))

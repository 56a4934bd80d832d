"""A run's recipe as a tracker's config: flat, plain values, no secrets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from kdcore import facts, redact_secrets

Plain = bool | int | float | str


def settings_of(folder: Path) -> Mapping[str, Plain]:
    """The resolved recipe of a run folder by dotted key, as in `--set`: "loss.1.use"."""
    resolved = (folder / "resolved.toml").read_text(encoding="utf-8")
    return {
        key: _plain(value) for key, value in facts.flat(facts.settings_in(redact_secrets(resolved)))
    }


def _plain(value: object) -> Plain:
    """Numbers and texts unchanged, lists as JSON."""
    return value if isinstance(value, Plain) else json.dumps(value, default=str)

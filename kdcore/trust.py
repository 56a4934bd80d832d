"""Whose code may run in this process: nobody's but theirs whom the recipe at hand names."""

from __future__ import annotations

import logging
from collections.abc import Sequence

_log = logging.getLogger("kdcore")
_named: set[str] = set()


def trust(names: Sequence[str]) -> None:
    """From now on these, as a recipe's `trust_remote_code` says, and none that was named before."""
    _named.clear()
    _named.update(names)
    for name in names:
        _log.warning("the recipe trusts %r: code from there may run in this process", name)


def is_trusted(name: str) -> bool:
    """Whether code of this model's or tokenizer's own may run; by the very name in the recipe."""
    return name in _named

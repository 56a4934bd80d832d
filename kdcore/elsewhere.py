"""What differs between where a run ran and where it is repeated or continued."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcore.environment import environment_of, recorded

if TYPE_CHECKING:
    from kdcore.plugins import Host

_SHOWN = 8


def said_of(folder: Path, host: Host) -> str | None:
    """A line on what differs from the folder's env.json; None where there is none, or nothing."""
    path = folder / "env.json"
    if not path.is_file():
        return None
    before = recorded(path)
    if before is None:
        return f"{path} is damaged, so that nobody can say what differs from where it was written"
    found = differences(before, environment_of(host))
    if not found:
        return None
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return (
        f"{folder} ran elsewhere, so the last digits may differ: {'; '.join(found[:_SHOWN])}{more}"
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Each thing that is not as it was, named, with what it was and is."""
    was, is_now = (dict(_flat(each)) for each in (before, now))
    return [
        f"{name} was {was.get(name, 'not there')}, is {is_now.get(name, 'not there')}"
        for name in dict.fromkeys([*was, *is_now])
        if was.get(name) != is_now.get(name)
    ]


def _flat(value: Any, name: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, list):
        value = {str(n): each for n, each in enumerate(value)}
    if not isinstance(value, dict):
        return [(name, value)]
    return [pair for key, each in value.items() for pair in _flat(each, f"{name} {key}".strip())]

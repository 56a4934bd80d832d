"""Examples of a command, shown below its `--help`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_Verb = TypeVar("_Verb", bound=Callable[..., Any])
_ATTRIBUTE = "kdcore_examples"


def examples(*commands: str) -> Callable[[_Verb], _Verb]:
    """Attach examples to a command, each a whole command line."""

    def given(verb: _Verb) -> _Verb:
        setattr(verb, _ATTRIBUTE, commands)
        return verb

    return given


def epilog_of(verb: object) -> str | None:
    """The examples of a command as its help shows them; None if it has none."""
    found: tuple[str, ...] = getattr(verb, _ATTRIBUTE, ())
    return as_epilog(*found) if found else None


def as_epilog(*commands: str) -> str:
    """One line per command."""
    return "\n\n".join(("Examples:", *commands))

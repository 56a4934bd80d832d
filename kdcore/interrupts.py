"""Whether a signal asked this process to end its run: for whatever waits during a step."""

from __future__ import annotations

_asked = False


def stop_requested() -> bool:
    """Whether the run ends after this step. What waits for a server should give up then."""
    return _asked


def ask_to_stop(asked: bool) -> None:
    """Set by the handlers of signals, which may run at any moment: a plain flag has no lock."""
    global _asked
    _asked = asked

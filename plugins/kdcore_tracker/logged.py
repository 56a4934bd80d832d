"""The last step logged to each tracker: trackers keep their steps when a run is resumed."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any


class LoggedSteps:
    """One tracker's entry in tracker.json of the run folder."""

    def __init__(self, folder: Path, tracker: str) -> None:
        self._path, self._tracker = folder / "tracker.json", tracker
        self._state: dict[str, Any] = self._all().get(tracker, {})
        self.begun = bool(self._state)  # by an earlier process

    @property
    def id(self) -> str:
        """A unique name for the run."""
        return str(self._state.setdefault("id", secrets.token_hex(4)))

    def begin(self) -> None:
        """Record that the tracker has started."""
        assert self.id
        self._keep()

    def knows(self, kind: str, step: int) -> bool:
        """Whether this step, or a later one, has been logged."""
        return step <= int(self._state.get(kind, -1))

    def note(self, kind: str, step: int) -> None:
        """Record that this step has been logged."""
        self._state[kind] = step
        self._keep()

    def _all(self) -> dict[str, dict[str, Any]]:
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _keep(self) -> None:
        partial = self._path.with_name(f".{self._path.name}")
        partial.write_text(json.dumps({**self._all(), self._tracker: self._state}))
        partial.replace(self._path)

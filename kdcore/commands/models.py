"""RUN|MODEL: a run by its name, a folder with a model, or a hub model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kdcore.errors import UsageError
from kdcore.runs.folder import find_run


@dataclass(frozen=True)
class Named:
    """What a name on the command line refers to: a run's folder, or else a model."""

    name: str
    run: Path | None

    @property
    def finished(self) -> bool:
        """Whether this is a run with final weights."""
        return self.run is not None and (self.run / "final").is_dir()

    def model(self) -> str:
        """The folder or hub name of its weights."""
        if self.run is None:
            return self.name
        if not self.finished:
            said = f"{self.run} is not finished and has no final model"
            raise UsageError(f"{said}; type kdcore run {self.run} to resume it")
        return str(self.run / "final")


def named(name: str, out: Path) -> Named:
    """Resolve a name: a folder with a model comes first, the hub last."""
    place = Path(os.path.expanduser(name))
    if any(os.path.isfile(place / config) for config in ("config.json", "adapter_config.json")):
        return Named(name, None)
    on_hub = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    try:
        return Named(name, find_run(name, out))
    except UsageError:
        if on_hub and not os.path.exists(name):
            return Named(name, None)
        raise

"""Links in a folder that may come from a stranger: nothing is written or deleted through them."""

from __future__ import annotations

import os
from pathlib import Path

from kdcore.errors import UsageError


def refuse_links(folder: Path) -> None:
    """Refuse a folder with a link in it that leads elsewhere. The folder may be a link itself."""
    home = folder.resolve()
    for where, folders, files in os.walk(home):
        for path in (Path(where, name) for name in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                shown = folder / path.relative_to(home)
                raise UsageError(
                    f"{shown} is a link to {os.readlink(path)}, and a run writes nothing outside "
                    "its folder: put what it leads to in its place, or remove it"
                )

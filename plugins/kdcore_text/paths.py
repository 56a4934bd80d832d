"""Paths as typed by the user: `~`, patterns, and error messages for missing ones."""

from __future__ import annotations

import difflib
import glob
import os
import re
from pathlib import Path

from kdcore_text.formats import ENDINGS
from kdcore_text.opening import PACKED

_READERS = ("text", "csv", "json", "parquet", "arrow")  # `datasets` reads the whole folder by them
_ON_HUB = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def local(path: str) -> Path:
    """A local path, with `~` expanded."""
    return Path(os.path.expanduser(path))


def is_here(path: str) -> bool:
    """Whether it refers to existing local files or a folder."""
    if not path.strip():
        return False
    place = local(path)
    return os.path.isfile(place) or os.path.isdir(place) or bool(matches(path))


def is_pattern(path: str) -> bool:
    """Whether it is a pattern: it has `*`, `?` or `[...]`, and no file has that name."""
    return glob.has_magic(path) and not os.path.exists(local(path))


def matches(path: str) -> list[Path]:
    """The files that match a pattern, by name; `**` matches folders at any depth."""
    if not is_pattern(path):
        return []
    found = map(Path, glob.glob(str(local(path)), recursive=True))
    return sorted(file for file in found if file.is_file())


def absent(path: str, key: str = "path") -> str | None:
    """The error message for a path that does not exist and cannot be a hub name.

    `key` is the option that it was given as.
    """
    if is_here(path) or not _is_no_name(path):
        return None
    if not path.strip():
        return "path is empty: name a file, a folder, or a data set on the hub"
    if "://" in path:
        return f"cannot read {path!r}: download it, and name the file"
    where = "" if os.path.isabs(local(path)) else f" in {os.getcwd()}"
    if os.path.exists(local(path)):
        return f"cannot read {path!r}: it is neither a file nor a folder"
    if is_pattern(path):
        return f"no file matches {path!r}{where}{_next_to(path)}; {_given(key)}"
    near = meant(path) or f"{_gone(local(path))}; {_given(key)}"
    return f"there is no file or folder {path!r}{where}{near}"


def _given(key: str) -> str:
    return f'give one that is there: {key} = "PATH" in [data], or --set data.{key}=PATH'


def _next_to(pattern: str) -> str:
    """What the folder of a pattern has instead."""
    folder = local(pattern).parent
    there = sorted(os.listdir(folder)) if folder.is_dir() else []
    more = f" and {len(there) - 3:,} more" if len(there) > 3 else ""
    return f"; {folder} has {', '.join(there[:3])}{more}" if there else _gone(local(pattern))


def _is_no_name(path: str) -> bool:
    ending = Path(path.lower()).suffix in {*ENDINGS, *PACKED}
    return ending or path in _READERS or _ON_HUB.fullmatch(path) is None


def _gone(place: Path) -> str:
    """The missing parent folder, if one is missing."""
    above = (each for each in reversed(place.parents) if not each.is_dir())
    return next((f": there is no folder {str(each)!r}" for each in above), "")


def meant(path: str) -> str:
    """A suggestion of a similar name in the same folder, if there is one."""
    place = local(path)
    there = os.listdir(place.parent) if place.parent.is_dir() else []
    near = [each for each in there if Path(each).stem == place.name]
    near = near or difflib.get_close_matches(place.name, there, n=1)
    return f"; did you mean {str(place.parent / near[0])!r}?" if near else ""

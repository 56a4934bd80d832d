"""Whether the module that was imported is the one that its distribution installed.

Modules at the top level share one namespace: a file of the same name in the current folder, or in
another distribution, silently takes the place of the right one. Editable installs record their
folder instead of their files, so that there only a file outside this folder is noticed.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from hashlib import sha256
from importlib.metadata import Distribution, PackagePath
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from kdcore.discovery import OWN, sorted_entry_points


def reserved_modules() -> frozenset[str]:
    """The top-level modules that kdcore's own plugins and verbs are made of."""
    points = [*sorted_entry_points(OWN), *sorted_entry_points("kdcore.commands")]
    own = (point for point in points if point.dist is not None and point.dist.name == OWN)
    return frozenset({OWN, *(point.value.split(":")[0].split(".")[0] for point in own)})


def shadow_note(module_name: str, file: Path, distribution: Distribution) -> str | None:
    """What to tell the user where `file` is not the distribution's own module; else None."""
    if _is_own(module_name, file, distribution):
        return None
    top = module_name.partition(".")[0]
    note = f"the module {top} was imported from {file}, which is not what {distribution.name} "
    note += "installed: rename that file"
    if top in reserved_modules():
        note += f" ({top} is a module of kdcore's own)"
    return note


def _is_own(module_name: str, file: Path, distribution: Distribution) -> bool:
    folder = _editable_folder(distribution)
    if folder is not None:
        return file.resolve().is_relative_to(folder)
    stem = module_name.replace(".", "/")
    for recorded in distribution.files or ():
        if str(recorded) in (f"{stem}.py", f"{stem}/__init__.py"):
            return _is_same(recorded, file, distribution)
    # Without a record (compiled modules, system packages) there is nothing to compare with.
    return True


def _is_same(recorded: PackagePath, file: Path, distribution: Distribution) -> bool:
    if Path(str(distribution.locate_file(recorded))).resolve() != file.resolve():
        return False
    # Another distribution may have been installed over it, in the same place.
    if recorded.hash is None or recorded.hash.mode != "sha256":
        return True
    digest = urlsafe_b64encode(sha256(file.read_bytes()).digest()).rstrip(b"=")
    return digest.decode() == recorded.hash.value


def _editable_folder(distribution: Distribution) -> Path | None:
    text = distribution.read_text("direct_url.json")
    source = json.loads(text) if text else {}
    if not source.get("dir_info", {}).get("editable"):
        return None
    return Path(url2pathname(urlsplit(source["url"]).path)).resolve()

"""Distributions for the tests of the plugin host, laid into a folder as pip would lay them."""

import base64
import hashlib
from pathlib import Path
from textwrap import dedent

HEADER = "from kdcore import component, hookimpl, Loss, Logger, Teacher\n"

LOSS = """
@component
class Made(Loss):
    name = "{name}"
    temperature: float = 1.0

@hookimpl
def kdcore_losses():
    return [Made]
"""


def loss(name: str) -> str:
    return LOSS.format(name=name)


def install(
    folder: Path,
    distribution: str,
    modules: dict[str, str],
    entry_points: dict[str, str] | None = None,
    requires: tuple[str, ...] = (),
    version: str = "0.1",
    group: str = "kdcore",
) -> Path:
    """Write modules and metadata. Without entry points each module is a plugin of its name."""
    folder.mkdir(parents=True, exist_ok=True)
    record = [_write(folder / f"{name}.py", text) for name, text in modules.items()]
    points = entry_points if entry_points is not None else {name: name for name in modules}
    info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    needed = "".join(f"Requires-Dist: {each}\n" for each in requires)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n{needed}"
    )
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")
    (info / "RECORD").write_text("".join(f"{line}\n" for line in record))
    return folder


def _write(path: Path, text: str) -> str:
    path.write_text(HEADER + dedent(text))
    digest = hashlib.sha256(path.read_bytes()).digest()
    name = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    return f"{path.name},sha256={name},{path.stat().st_size}"

"""The fake device's library, compiled once for its source, torch and compiler."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

_SOURCE = Path(__file__).with_name("device.cpp")
_CACHE = Path(__file__).parents[2] / ".pytest_cache" / "fake_cuda"


def compiler() -> str | None:
    """The C++ compiler of this machine; None where there is none."""
    return shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")


def library() -> Path:
    """The library for the torch that is installed, compiled where it was not before."""
    found_compiler = compiler()
    assert found_compiler is not None, "the fake device needs a C++ compiler"
    said = subprocess.run([found_compiler, "--version"], capture_output=True, check=True)
    bound = _SOURCE.read_bytes() + version("torch").encode() + said.stdout
    found = _CACHE / f"device-{hashlib.sha256(bound).hexdigest()[:16]}.so"
    _CACHE.mkdir(parents=True, exist_ok=True)
    with open(_CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest-xdist has several processes
        if not found.exists():
            _compile(found_compiler, found)
    return found


def _compile(compiler: str, to: Path) -> None:
    # Found, not imported: the device has to be there before torch is.
    spec = find_spec("torch")
    assert spec is not None and spec.origin is not None
    torch = Path(spec.origin).parent
    headers, libraries = torch / "include", torch / "lib"
    partial = to.with_suffix(".partial")
    command = [compiler, "-O0", "-std=c++20", "-shared", "-fPIC", str(_SOURCE), "-o", str(partial)]
    command += [f"-I{headers}", f"-I{headers / 'torch/csrc/api/include'}"]
    command += [f"-L{libraries}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{libraries}"]
    subprocess.run(command, check=True)
    partial.rename(to)

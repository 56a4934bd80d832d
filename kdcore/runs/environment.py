"""The environment of a run: recorded, and compared with another.

Only environment variables of a short list are recorded, those that affect speed or precision.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdcore.plugin.manager import PluginManager


_PACKAGES = [
    "kdcore",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "accelerate",
    "safetensors",
    "huggingface-hub",
    "numpy",
    "pydantic",
    "pluggy",
    "peft",
    "liger-kernel",
    "bitsandbytes",
    "triton",
]

_VARIABLES = [
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE",
    "HF_HUB_OFFLINE",
    "KDCORE_PLUGINS_OFF",
    "TOKENIZERS_PARALLELISM",
    "WORLD_SIZE",
]


def record(host: PluginManager | None = None) -> str:
    """The content of env.json."""
    return json.dumps(environment_of(host), indent=1) + "\n"


def recorded(path: Path) -> dict[str, Any] | None:
    """The parsed env.json; None if it is damaged or missing."""
    try:
        found = json.loads(path.read_text("utf-8", "replace"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def environment_of(host: PluginManager | None = None) -> dict[str, Any]:
    """Versions, machine, devices and plugins: the host's, or else the installed ones."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "processor": _processor(),
        "devices": _devices(),
        "plugins": _installed() if host is None else _loaded(host),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> dict[str, Any]:
    import torch

    return {
        "name": _processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def _processor_name() -> str:
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _devices() -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    return [
        {
            "name": each.name,
            "memory": each.total_memory,
            "capability": f"{each.major}.{each.minor}",
            "cuda": torch.version.cuda,
        }
        for each in found
    ]


def _installed() -> dict[str, str]:
    from kdcore.plugin.discovery import candidates

    return {each.name: f"{each.distribution} {each.version}".strip() for each in candidates()}


def _loaded(host: PluginManager) -> dict[str, str]:
    said = {}
    for plugin in host.plugins:
        origin = f"{plugin.distribution} {plugin.version}".strip()
        state = "blocked" if plugin.blocked else "broken" if plugin.broken else ""
        said[plugin.name] = f"{origin}, {state}" if state else origin
    return said


_SHOWN = 8


def describe_differences(folder: Path, host: PluginManager) -> str | None:
    """The differences to the folder's env.json, on one line; None without any or without a file."""
    path = folder / "env.json"
    if not path.is_file():
        return None
    before = recorded(path)
    if before is None:
        return f"{path} is damaged, so the environment that wrote it is unknown"
    found = differences(before, environment_of(host))
    if not found:
        return None
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return (
        f"{folder} was run in another environment, so the last digits may differ: "
        f"{'; '.join(found[:_SHOWN])}{more}"
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Each difference by name, with old and new value."""
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

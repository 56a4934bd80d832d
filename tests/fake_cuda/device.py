"""Makes the fake device torch's CUDA: to be called before anything imports torch."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_MEMORY = 80 * 2**30
_PROPERTIES = SimpleNamespace(
    name="Fake",
    total_memory=_MEMORY,
    major=8,
    minor=0,
    multi_processor_count=108,
    warp_size=32,
    is_integrated=0,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
)


def install(library: Path) -> None:
    """From here on torch has two CUDA devices."""
    assert "torch" not in sys.modules, "torch asks for CUDA while it is imported"
    loaded = ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    import torch

    from fake_cuda import attention, products

    torch._C._cuda_getDeviceCount = _devices
    torch._C._cuda_getCurrentRawStream = lambda device: 0  # torch._dynamo imports it
    for name, answer in _answers(loaded).items():
        setattr(torch.cuda, name, answer)
    attention.register()
    products.register()


def _devices() -> int:
    return int(os.environ.get("FAKE_CUDA_DEVICES", "2"))


def _has_bf16() -> bool:
    return os.environ.get("FAKE_CUDA_BF16", "yes") == "yes"


class _Stream:
    """Nothing happens later: a stream has nothing to wait for."""

    def __init__(self, device: Any = None) -> None:
        self.device = device

    def wait_stream(self, stream: _Stream) -> None:
        """Nothing is under way."""
        assert isinstance(stream, _Stream)


@contextmanager
def _in_stream(stream: _Stream) -> Iterator[None]:
    assert isinstance(stream, _Stream)
    yield


def _answers(loaded: ctypes.CDLL) -> dict[str, Any]:
    """torch.cuda's functions that would ask the driver, by name."""
    import torch

    from fake_cuda import graphs

    def exchange(device: int) -> int:
        return int(loaded.fake_cuda_exchange(device) if device >= 0 else -1)

    def set_device(device: Any) -> None:
        exchange(torch.cuda._utils._get_device_index(device, optional=True))

    # A function each: torch's compiler keeps rules by function.
    nothing = ("_lazy_init", "empty_cache", "synchronize", "manual_seed", "manual_seed_all")
    quiet: dict[str, Any] = {name: lambda *arguments: None for name in nothing}
    return quiet | {
        "is_available": lambda: _devices() > 0,
        "Stream": _Stream,
        "CUDAGraph": graphs.Graph,
        "graph": graphs.Capture,
        "graph_pool_handle": lambda: (0, 0),
        "current_stream": lambda device=None: _Stream(device),
        "stream": _in_stream,
        "_is_compiled": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda including_emulation=True: _has_bf16(),
        "device_count": lambda: _devices(),
        "current_device": lambda: int(loaded.fake_cuda_current()),
        "set_device": set_device,
        "_exchange_device": exchange,
        "_maybe_exchange_device": lambda device: exchange(device),
        "mem_get_info": lambda device=None: (_MEMORY // 4, _MEMORY),
        "memory_reserved": lambda device=None: 0,
        "get_per_process_memory_fraction": lambda device=None: 1.0,
        "get_device_capability": lambda device=None: (_PROPERTIES.major, _PROPERTIES.minor),
        "get_device_name": lambda device=None: _PROPERTIES.name,
        "get_device_properties": lambda device=None: _PROPERTIES,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
    }

"""Sharded tensors in a folder: each process writes and reads its own parts.

Written by torch.distributed.checkpoint as safetensors files, some for each process, whose headers
say which part of which tensor they hold. So nothing is pickled, and any number of processes reads
what any other number wrote, also as whole tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

_PARTS = "shard-*.safetensors"
_FILE_BYTES = 64 * 2**20


def divided(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those that are sharded."""
    return {name: each for name, each in tensors.items() if isinstance(each, DTensor)}


def undivided(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those that are whole on every process."""
    return {name: each for name, each in tensors.items() if not isinstance(each, DTensor)}


def has_parts(folder: Path) -> bool:
    """Whether a folder holds parts of tensors."""
    return next(folder.glob(_PARTS), None) is not None


def write_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write each process's parts of sharded tensors: a collective call."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    # The writer holds a copy of a file's content until it is written.
    files = _files(tensors)
    writer = HuggingFaceStorageWriter(str(folder), files, save_distributed=True)
    with _plain_errors():
        save(dict(tensors), storage_writer=writer)


def _files(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The number of each tensor's file, from 1, alike on every process."""
    files: dict[str, int] = {}
    at, filled = 1, 0
    for name, each in tensors.items():
        size = each.numel() * each.element_size() // torch.distributed.get_world_size()
        if filled and filled + size > _FILE_BYTES:
            at, filled = at + 1, 0
        files[name], filled = at, filled + size
    return files


def read_like(
    folder: Path, wanted: Callable[[str], bool], like: Callable[[str], Tensor | None]
) -> dict[str, Tensor]:
    """The tensors of a folder with a wanted name, in their saved dtype.

    Each is sharded as the tensor that `like` gives for its name, or whole if that is no tensor of
    the same shape.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    found: dict[str, Tensor] = {}
    saved: Any = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    for name, each in saved.items():
        if wanted(name):
            other, dtype = like(name), each.properties.dtype
            if other is not None and other.shape == each.size:
                found[name] = torch.empty_like(other, dtype=dtype)
            else:
                found[name] = torch.empty(each.size, dtype=dtype)
    read_into(folder, found)
    return found


def read_into(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill these, whole or this process's parts, from a folder's files. No collective call."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    with _plain_errors():
        load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise the first process's own error, such as of a full disk, on all processes.

    torch's collection of all errors is no Exception, so that nothing would clean up or explain it.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        first, _ = error.failures[min(error.failures)]
        raise first from error

"""Counts what a GPU would be told to do, and where the host would wait for it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ROOT = Path(__file__).parents[2]
_SOURCES = tuple(f"{_ROOT / folder}/" for folder in ("kdcore", "plugins"))
_aten = torch.ops.aten
_ALLOCATIONS = {
    _aten.empty,
    _aten.empty_like,
    _aten.empty_strided,
    _aten.new_empty,
    _aten.new_empty_strided,
    _aten._unsafe_view,
    _aten.lift_fresh,
}
_BY_SIZE = {_aten.nonzero, _aten.masked_select, _aten._unique2, _aten.unique_consecutive}
_BY_INDEX = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}
_COPIES = {_aten._to_copy, _aten.copy_}


class Counted(TorchDispatchMode):
    """While it is active: operations on the device, and synchronisations by file and line.

    Views and allocations are no operations. Autograd's own threads count too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Let it be computed, and note what it was."""
        options = kwargs or {}
        found = func(*args, **options)
        taken, made = tensors_in((args, options)), tensors_in(found)
        if any(each.is_cuda for each in (*taken, *made)):
            if not _is_view(func):
                self.operations[str(func)] += 1
            if why := why_it_waits(func.overloadpacket, args, options, taken, found):
                self.waits[f"{_place()}: {why}"] += 1
        return found


def tensors_in(values: Any) -> list[Tensor]:
    return [each for each in tree_leaves(values) if isinstance(each, Tensor)]


def _is_view(func: Any) -> bool:
    aliased = [each.alias_info for each in func._schema.returns if each.alias_info is not None]
    read_only = bool(aliased) and not any(each.is_write for each in aliased)
    return read_only or func.overloadpacket in _ALLOCATIONS


def why_it_waits(
    packet: Any, args: Sequence[Any], options: Mapping[str, Any], taken: list[Tensor], found: Any
) -> str | None:
    if packet is _aten._local_scalar_dense:
        return "a value is read"
    if packet in _BY_SIZE or (packet is _aten.repeat_interleave and len(taken) == 1):
        return f"the shape of {packet.__name__} is read"
    if packet in _BY_INDEX:
        return _why_index_waits(args[1])
    if packet is _aten.lift_fresh and found.is_cuda:
        return "a tensor is made of values of the host"
    if packet in _COPIES:
        return _why_copy_waits(packet, args, options, found)
    return None


def _why_index_waits(indices: Sequence[Tensor | None]) -> str | None:
    given = [index for index in indices if index is not None]
    if any(index.dtype == torch.bool for index in given):
        return "an index is a mask"
    if any(not index.is_cuda and index.dim() for index in given):
        return "an index is on the host"
    return None


def _why_copy_waits(
    packet: Any, args: Sequence[Any], options: Mapping[str, Any], found: Tensor
) -> str | None:
    if packet is _aten.copy_:
        source, target = args[1], args[0]
        asked = options.get("non_blocking", args[2] if len(args) > 2 else False)
    else:
        source, target, asked = args[0], found, options.get("non_blocking", False)
    if source.is_cuda == target.is_cuda:
        return None
    on_host = source if target.is_cuda else target
    if asked and on_host.is_pinned():
        return None
    return "a copy to the device" if target.is_cuda else "a copy to the host"


def _place() -> str:
    """The innermost line of kdcore or of a plugin that is being run."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith(_SOURCES):
        frame = frame.f_back
    if frame is None:
        return "elsewhere"
    return f"{Path(frame.f_code.co_filename).relative_to(_ROOT)}:{frame.f_lineno}"


def chosen(library: Any) -> dict[str, int]:
    """How often each backend of `scaled_dot_product_attention` was taken so far."""
    names = ("math", "flash", "efficient")
    ask: Callable[[int], int] = library.fake_cuda_chosen
    return {name: int(ask(number)) for number, name in enumerate(names)}

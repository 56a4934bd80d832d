"""Causal attention within each piece of packed rows, without a mask, for transformers' models.

Registered with transformers as an attention implementation. Where a call knows how its rows are
packed, each piece attends to itself only: on a CPU by one causal call per piece, on a GPU in half
precision by torch's variable-length flash attention, after a check that it gives the same result.
Rows of one piece each run as a batch; transformers would search them for restarting positions, and
sync the device. All other calls use "sdpa".
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdcore.models.logit_transforms import allclose

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kdcore.data.batch import Packing

_log = logging.getLogger("kdcore")

NAME = "kdcore_packed"
_TRIAL = "kdcore_trial"
_TAKES_THE_PLACE_OF = "sdpa"
_HALF = (torch.bfloat16, torch.float16)
_KERNELS_APART = 2e-2  # largest relative difference of two kernels in half precision


def install(model: PreTrainedModel, forward: Callable[[], object]) -> bool:
    """Use this attention where the model would use "sdpa". Returns whether it is in use.

    Not used where masks hide something that attention calls do not know; runs `forward` to find
    out.
    """
    if getattr(model.config, "_attn_implementation", None) not in (_TAKES_THE_PLACE_OF, NAME):
        return False
    window = _window_of(model)
    if window and window not in _windows_used(model, forward):
        return False
    _attend_by(model, NAME, attend)
    return True


def _window_of(model: PreTrainedModel) -> int | None:
    """The window of layers with sliding attention, or the chunk size of layers with chunked one."""
    config = model.config.get_text_config()
    if chunk := getattr(config, "attention_chunk_size", None):
        return int(chunk)
    kinds = getattr(config, "layer_types", None)
    slides = kinds is None or "sliding_attention" in kinds
    slides &= getattr(config, "use_sliding_window", True)
    return getattr(config, "sliding_window", None) if slides else None


def _windows_used(model: PreTrainedModel, forward: Callable[[], object]) -> set[object]:
    """The windows that the layers' attention calls receive."""
    windows = set[object]()

    def record(*arguments: Any, **options: Any) -> tuple[Tensor, None]:
        windows.add(options.get("sliding_window"))
        return _plain(*arguments, **options)

    _attend_by(model, _TRIAL, record)
    try:
        forward()
    finally:
        uninstall(model)
    return windows


def _attend_by(model: PreTrainedModel, name: str, attention: Callable[..., Any]) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sdpa_mask)
    model.config._attn_implementation = name


def uninstall(model: PreTrainedModel) -> None:
    """Restore the model's own attention."""
    model.config._attn_implementation = _TAKES_THE_PLACE_OF


def is_exact_at(model: PreTrainedModel, run: Callable[[bool], Tensor], last: int) -> bool:
    """Whether the last piece of a row gives what it gives alone, in every layer.

    `run` runs the row, or with False its last piece of `last` tokens alone, and returns states
    [1, n, H]. Queries are compared too: with fresh weights, states hardly depend on them. Alone,
    the piece also runs with the model's own attention, as some models choose keys only for that.
    """
    kernel = model.config._attn_implementation

    def seen(together: bool) -> list[Tensor]:
        found: list[Tensor] = []

        def note(
            module: nn.Module, query: Tensor, *arguments: Any, **options: Any
        ) -> tuple[Tensor, None]:
            made = attend(module, query, *arguments, **options)
            found.extend([query[:, :, -last:], made[0][:, -last:]])
            return made

        if kernel in (_TAKES_THE_PLACE_OF, NAME):
            _attend_by(model, _TRIAL, note)
        try:
            states = run(together)[:, -last:]
        finally:
            model.config._attn_implementation = kernel
        return [states, *found]

    packed, alone = seen(True), seen(False)
    if kernel == NAME:
        uninstall(model)
        packed, alone = [*packed, packed[0]], [*alone, run(False)]
        model.config._attn_implementation = kernel
    return all(allclose(*pair, times=10) for pair in zip(packed, alone, strict=True))


def is_exact_at_once(model: PreTrainedModel, forward: Callable[[], object]) -> bool:
    """Whether one call for all pieces gives the same as each piece alone, in every layer.

    `forward` runs packed rows as in training. False in float32 and on a CPU, which have no such
    kernel.
    """
    exact: list[bool] = []

    def compared(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        *,
        packing: Packing,
        at_once: bool,
        **options: Any,
    ) -> tuple[Tensor, None]:
        some = _as_autocast(query, key, value)
        wanted = _by_piece(module, some, packing, options)
        if _suits_at_once(some, options):
            exact.append(_near(_at_once(some, packing, options), wanted))
        return wanted, None

    _attend_by(model, _TRIAL, compared)
    try:
        forward()
    except (RuntimeError, TypeError, ValueError) as error:
        _warn_slower(model, str(error).strip().partition("\n")[0])
        return False
    finally:
        _attend_by(model, NAME, attend)
    if not all(exact):
        _warn_slower(model, "the flash kernel gives other numbers than one call for each")
    return bool(exact) and all(exact)


def _warn_slower(model: PreTrainedModel, why: str) -> None:
    _log.info(
        "%s: packed documents attend one by one, which is slower (%s)", type(model).__name__, why
    )


def _near(found: Tensor, wanted: Tensor) -> bool:
    apart = (found.float() - wanted.float()).abs().max()
    return bool(apart <= _KERNELS_APART * wanted.float().abs().max())


def keep_uncompiled() -> None:
    """Exclude packed attention from compilation: it would recompile for each micro-batch.

    Called where a trunk is compiled; the import takes torch a second.
    """
    global _packed
    _packed = torch.compiler.disable(_packed)  # type: ignore[no-untyped-call]


def arguments(
    packing: Packing, rows: int, device: torch.device, *, at_once: bool
) -> dict[str, Any]:
    """The trunk's arguments that tell its attention how these rows are packed.

    `at_once`: all pieces in one call, where dtype and device allow it. The four-dimensional mask
    passes through transformers unchanged, and is never read.
    """
    mask = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=device)
    options: dict[str, Any] = {"packing": packing, "at_once": at_once}
    if packing.is_whole(rows):
        options = {"whole_rows": True}
    return {"attention_mask": mask, **options}


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing | None = None,
    at_once: bool = False,
    whole_rows: bool = False,
    **options: Any,
) -> tuple[Tensor, None]:
    """Queries [rows, heads, time, D], keys and values -> [rows, time, heads, D].

    Packed pieces are concatenated in a single row.
    """
    some = (query, key, value)
    if whole_rows:
        return _piece(module, _as_autocast(*some), options), None
    if packing is None:
        return _plain(module, *some, attention_mask, **options)
    return _packed(module, some, packing, at_once, options), None


_Three = tuple[Tensor, Tensor, Tensor]  # queries, keys and values


def _packed(
    module: nn.Module, some: _Three, packing: Packing, at_once: bool, options: dict[str, Any]
) -> Tensor:
    some = _as_autocast(*some)
    if at_once and _suits_at_once(some, options):
        return _at_once(some, packing, options)
    return _by_piece(module, some, packing, options)


def _as_autocast(*some: Tensor) -> _Three:
    """Cast as autocast does for attention, before the kernel is chosen.

    Under autocast, rotary embeddings give float32 queries and keys, but values are half.
    """
    query, key, value = some
    kind = query.device.type
    if kind != "cuda" or not torch.is_autocast_enabled(kind):
        return query, key, value
    dtype = torch.get_autocast_dtype(kind)
    return query.to(dtype), key.to(dtype), value.to(dtype)


def _by_piece(module: nn.Module, some: _Three, packing: Packing, options: dict[str, Any]) -> Tensor:
    # Split, not sliced: the gradient of a slice is as large as the whole tensor.
    query, key, value = (torch.split(each, list(packing.lengths), dim=2) for each in some)
    pieces = zip(query, key, value, strict=True)
    return torch.cat([_piece(module, piece, options) for piece in pieces], dim=1)


def _piece(module: nn.Module, some: _Three, options: dict[str, Any]) -> Tensor:
    query, key, value = some
    mask = _band(query.shape[2], options.get("sliding_window"), query.device)
    if query.is_cuda and query.dtype not in _HALF and query.shape[1] != key.shape[1]:
        # In float32 only the math kernel supports grouped queries; repeat the keys instead.
        key, value = _for_each_query(query, key), _for_each_query(query, value)
        module = SimpleNamespace(is_causal=getattr(module, "is_causal", True))  # type: ignore[assignment]
    return _plain(module, query, key, value, mask, **options)[0]


def _for_each_query(query: Tensor, other: Tensor) -> Tensor:
    """Keys or values [rows, groups, time, D], repeated for each query head."""
    return other.repeat_interleave(query.shape[1] // other.shape[1], dim=1)


def _band(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """The mask of a piece longer than the window; None where causality suffices."""
    if window is None or length <= window:
        return None
    place = torch.arange(length, device=device)
    back = place[:, None] - place[None, :]
    return ((back >= 0) & (back < window))[None, None]


def _plain(module: nn.Module, *arguments: Any, **options: Any) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(module, *arguments, **options)


def _suits_at_once(some: _Three, options: dict[str, Any]) -> bool:
    query = some[0]
    return query.is_cuda and query.dtype in _HALF and not options.get("dropout")


@cache
def _varlen() -> tuple[Callable[..., Any], bool]:
    """torch's function, and whether it supports grouped queries."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        known = set[str]()
    else:
        known = set(inspect.signature(varlen_attn).parameters)
    if not {"scale", "window_size"} <= known:
        raise RuntimeError("torch 2.11 is the first with a kernel for all at once")
    return varlen_attn, "enable_gqa" in known


def _at_once(some: _Three, packing: Packing, options: dict[str, Any]) -> Tensor:
    """All pieces in one call."""
    query, key, value = some
    varlen_attn, knows_groups = _varlen()
    grouped: dict[str, Any] = {}
    if query.shape[1] != key.shape[1]:
        if knows_groups:
            grouped = {"enable_gqa": True}
        else:
            key, value = _for_each_query(query, key), _for_each_query(query, value)
    window = options.get("sliding_window")
    made = varlen_attn(
        *(each.transpose(1, 2).flatten(0, 1) for each in (query, key, value)),
        *(packing.starts, packing.starts, packing.longest, packing.longest),
        scale=options.get("scaling"),
        window_size=(-1 if window is None else window - 1, 0),
        **grouped,
    )
    assert isinstance(made, Tensor)
    return made[None]

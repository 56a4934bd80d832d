"""Causal attention within each piece of packed rows, without a mask: for transformers' models.

Registered with transformers as an attention implementation. Where a call says how its rows are
packed, each piece attends by itself: on a CPU one causal call for each, on a GPU torch's
variable-length flash attention. Rows that are one piece each attend side by side; transformers
would look for restarting positions in them, and make the host wait for what it finds. Everything
else goes the way of "sdpa".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kdcore.data.batch import Packing


NAME = "kdcore_packed"
_TRIAL = "kdcore_trial"
_TAKES_THE_PLACE_OF = "sdpa"
_HALF = (torch.bfloat16, torch.float16)


def install(model: PreTrainedModel, forward: Callable[[], object]) -> bool:
    """Let the model attend so, if it would use "sdpa"; whether it does now.

    Not where its masks hide what its attention is not told of; `forward` runs it to find out.
    """
    if getattr(model.config, "_attn_implementation", None) not in (_TAKES_THE_PLACE_OF, NAME):
        return False
    window = _window_of(model)
    if window and window not in _windows_told(model, forward):
        return False
    _attend_by(model, NAME, attend)
    return True


def _window_of(model: PreTrainedModel) -> int | None:
    """How far back some layers look; of layers that look at parts of a row, how large these are."""
    config = model.config.get_text_config()
    if chunk := getattr(config, "attention_chunk_size", None):
        return int(chunk)
    kinds = getattr(config, "layer_types", None)
    slides = kinds is None or "sliding_attention" in kinds
    slides &= getattr(config, "use_sliding_window", True)
    return getattr(config, "sliding_window", None) if slides else None


def _windows_told(model: PreTrainedModel, forward: Callable[[], object]) -> set[object]:
    """What the layers' calls of attention say of windows."""
    told = set[object]()

    def noting(*arguments: Any, **options: Any) -> tuple[Tensor, None]:
        told.add(options.get("sliding_window"))
        return _plain(*arguments, **options)

    _attend_by(model, _TRIAL, noting)
    try:
        forward()
    finally:
        uninstall(model)
    return told


def _attend_by(model: PreTrainedModel, name: str, attention: Callable[..., Any]) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sdpa_mask)
    model.config._attn_implementation = name


def uninstall(model: PreTrainedModel) -> None:
    """Back to what the model would use."""
    model.config._attn_implementation = _TAKES_THE_PLACE_OF


def keep_uncompiled() -> None:
    """No compiler may look into packed attention: it would compile anew for each micro-batch.

    Called where a trunk is compiled; torch takes a second to import what this needs.
    """
    global _packed
    _packed = torch.compiler.disable(_packed)  # type: ignore[no-untyped-call]


def arguments(packing: Packing, rows: int, device: torch.device) -> dict[str, Any]:
    """What a trunk is called with so that its attention knows how these rows are packed.

    The mask has four dimensions, which transformers hands on as it is, and is not looked at.
    """
    mask = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=device)
    told = {"whole_rows": True} if packing.is_whole(rows) else {"packing": packing}
    return {"attention_mask": mask, **told}


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing | None = None,
    whole_rows: bool = False,
    **options: Any,
) -> tuple[Tensor, None]:
    """Queries [rows, heads, time, D], keys and values -> [rows, time, heads, D].

    Packed pieces lie end to end in a single row.
    """
    if whole_rows:
        some, window = (query, key, value), options.get("sliding_window")
        return _piece(module, some, window, options), None
    if packing is None:
        return _plain(module, query, key, value, attention_mask, **options)
    return _packed(module, query, key, value, packing, options), None


def _packed(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    options: dict[str, Any],
) -> Tensor:
    window = options.get("sliding_window")
    if query.is_cuda and query.dtype in _HALF and not options.get("dropout"):
        return _at_once(query, key, value, packing, options.get("scaling"), window)
    # Split, not sliced: a slice's gradient is as large as what it was cut from.
    split = [torch.split(each, list(packing.lengths), dim=2) for each in (query, key, value)]
    found = [_piece(module, some, window, options) for some in zip(*split, strict=True)]
    return torch.cat(found, dim=1)


def _piece(
    module: nn.Module, some: tuple[Tensor, ...], window: int | None, options: dict[str, Any]
) -> Tensor:
    query, key, value = some
    mask = _band(query.shape[2], window, query.device)
    return _plain(module, query, key, value, mask, **options)[0]


def _band(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """The mask of a piece that is longer than the window; None where causality is enough."""
    if window is None or length <= window:
        return None
    place = torch.arange(length, device=device)
    back = place[:, None] - place[None, :]
    return ((back >= 0) & (back < window))[None, None]


def _plain(module: nn.Module, *arguments: Any, **options: Any) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(module, *arguments, **options)


def _at_once(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    scale: float | None,
    window: int | None,
) -> Tensor:
    """All pieces in one call."""
    from torch.nn.attention.varlen import varlen_attn

    heads = query.shape[1]
    queries, keys, values = (each.transpose(1, 2).flatten(0, 1) for each in (query, key, value))
    found = varlen_attn(
        queries,
        keys,
        values,
        packing.starts,
        packing.starts,
        packing.longest,
        packing.longest,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=heads != key.shape[1],
    )
    assert isinstance(found, Tensor)
    return found[None]

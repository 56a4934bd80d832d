"""Divides a model's weights between the processes by FSDP2, layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ENTRY = "kdcore_trunk"  # a sharded model's method that runs its trunk
_BLANK = "kdcore_blank"  # what it was before, without weights


def trunk_of(model: PreTrainedModel) -> nn.Module:
    """The model without its head; for a PEFT model, that of the wrapped model."""
    unwrap: Callable[[], PreTrainedModel] | None = getattr(model, "get_base_model", None)
    trunk: nn.Module = (unwrap() if unwrap else model).base_model
    return trunk


def shard(
    model: PreTrainedModel, device: torch.device, precision: torch.dtype | None = None
) -> None:
    """Divide the weights between all processes. Layers that are not on the device are moved there.

    Each layer is a group that is gathered while it runs, in `precision` if given; so are embeddings
    that the head does not share. All else, with the head and tied weights, is the root's group: it
    is gathered by a run of the trunk and stays whole until `rest`, for the head's products. Masters
    and the sums of gradients keep their dtype.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    marks = {name: vars(p).copy() for name, p in model.named_parameters()}
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    # Autocast casts what needs casting: a cast of inputs would round the residual stream.
    halves = MixedPrecisionPolicy(
        param_dtype=precision, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    whole = MixedPrecisionPolicy(cast_forward_inputs=False)
    for layer in layers_of(trunk_of(model)):
        if precision is not None:  # its weights are halves also where a caller sets no autocast
            layer.forward = torch.autocast(device.type, precision)(layer.forward)
        fully_shard(layer, mesh=mesh, mp_policy=halves, reshard_after_forward=True)
    if (embeddings := _own_embeddings(model)) is not None:
        fully_shard(embeddings, mesh=mesh, mp_policy=whole, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, mp_policy=whole, reshard_after_forward=False)
    for name, parameter in model.named_parameters():
        vars(parameter).update(marks[name])  # such as `_no_weight_decay`
    trunk = trunk_of(model)
    setattr(model, _ENTRY, MethodType(lambda self, **inputs: trunk(**inputs), model))
    register_fsdp_forward_method(model, _ENTRY)


def layers_of(trunk: nn.Module) -> Iterator[nn.Module]:
    """The trunk's layers, in order."""
    lists = (each for each in trunk.children() if isinstance(each, nn.ModuleList))
    return chain.from_iterable(lists)


def _own_embeddings(model: PreTrainedModel) -> nn.Module | None:
    """The embeddings, unless the head shares their weight."""
    embeddings: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    tied = getattr(head, "weight", None) is embeddings.weight
    return None if tied else embeddings


def keep_blank(model: PreTrainedModel) -> None:
    """Keep what the model is like before it is sharded, without its weights."""
    vars(model)[_BLANK] = blank(model)  # no submodule


def blank_of(model: PreTrainedModel) -> PreTrainedModel:
    """What was kept."""
    kept: PreTrainedModel = vars(model)[_BLANK]
    return kept


def run_of(model: PreTrainedModel, trunk: nn.Module) -> Callable[..., Any]:
    """The trunk as a function; for a sharded model, one that gathers what it needs."""
    found: Callable[..., Any] = getattr(model, _ENTRY, trunk)
    return found


def is_sharded(model: nn.Module) -> bool:
    """Whether a model's weights are divided between processes."""
    return hasattr(model, _ENTRY)


def rest(model: nn.Module) -> None:
    """Drop the gathered weights of the root's group. Without effect on other models."""
    if is_sharded(model):
        model.reshard()  # type: ignore[operator]


def local(tensor: Tensor) -> Tensor:
    """A tensor's part on this process; a plain tensor itself."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor, gathered: a collective call. A plain tensor itself."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The joint norm of tensors, of which some may be sharded."""
    from torch.distributed.tensor import DTensor

    apart = [each for each in tensors if isinstance(each, DTensor)]
    if not apart:
        return nn.utils.get_total_norm(tensors)
    others = [each for each in tensors if not isinstance(each, DTensor)]
    return torch.hypot(whole(nn.utils.get_total_norm(apart)), nn.utils.get_total_norm(others))


def copied(model: PreTrainedModel, precision: torch.dtype | None) -> PreTrainedModel:
    """A frozen copy, sharded as the model is; frozen weights of a whole model are shared."""
    if not is_sharded(model):
        made = copy.deepcopy(model, {id(p): p for p in model.parameters() if not p.requires_grad})
        return made.eval().requires_grad_(False)  # type: ignore[no-untyped-call,no-any-return]
    rest(model)
    made = copy.deepcopy(vars(model)[_BLANK]).eval().requires_grad_(False)
    device = local(next(model.parameters())).device
    shard(made, device, precision)
    made._apply(lambda each: torch.empty_like(each, device=device) if each.is_meta else each)
    held = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(held[name])
    return made  # type: ignore[no-any-return]


def blank(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model, whose parameters are on the meta device."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        made = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        vars(made).update(vars(parameter))
        memo[id(parameter)] = made
    return copy.deepcopy(model, memo)

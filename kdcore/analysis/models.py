"""Models without weights, and their bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from kdcore.analysis.parameters import parameters_of
from kdcore.api.component import Component
from kdcore.api.teacher import Teacher
from kdcore.models.offload import bytes_on_device
from kdcore.training.setup import optimizer_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from kdcore.api.train_options import TrainOptions


@dataclass(frozen=True, eq=False)
class TeacherModel:
    """A teacher's model without weights, and the bytes of its weights."""

    name: str  # with its parameter count
    model: PreTrainedModel
    size: int
    divides: bool = True  # its weights can be sharded


def teacher_model(name: str, config: PretrainedConfig) -> TeacherModel:
    """The model of a teacher's architecture. Called in `fake_models`."""
    model = fresh_model(config, cast(torch.dtype, config.dtype), None)
    how = getattr(config, "quantization_config", None) or {}
    bits = 4 if how.get("load_in_4bit") else 8
    parameters = parameters_of(model)[0]
    size = parameters * bits // 8 if how else bytes_of(model)
    offload = getattr(config, "offload", False)
    if offload:
        size = bytes_on_device(model)
    divides = not how and not offload
    return TeacherModel(f"teacher: {name}, {parameters:,} parameters", model, size, divides)


def takes_turns(component: Component) -> bool:
    """Whether its teachers share the device."""
    return isinstance(component, Teacher) and component.takes_turns()


def in_turn(teachers: Sequence[TeacherModel]) -> list[TeacherModel]:
    """Only the largest counts in full, the others with their heads."""
    largest = max(teachers, key=lambda one: one.size, default=None)
    return [
        one if one is largest else replace(one, size=bytes_of(head_of(one))) for one in teachers
    ]


def head_of(teacher: TeacherModel) -> nn.Module:
    """Its output embeddings."""
    return cast(nn.Module, teacher.model.get_output_embeddings())  # type: ignore[no-untyped-call]


def fresh_model(
    config: PretrainedConfig, dtype: torch.dtype, attention: str | None
) -> PreTrainedModel:
    """A model of this architecture, with random weights or none."""
    from transformers import AutoModelForCausalLM

    arguments = {"attn_implementation": attention} if attention else {}
    model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, dtype=dtype, **arguments
    )
    return model


def width_of(model: PreTrainedModel) -> int:
    """The size of its hidden states."""
    return int(model.config.get_text_config().hidden_size)


def bytes_of(model: nn.Module, dtype: torch.dtype | None = None) -> int:
    """Of its weights; in another data type, if given."""
    size = dtype.itemsize if dtype is not None else 0
    return sum(p.numel() * (size or p.element_size()) for p in model.parameters())


def saved_bytes(model: PreTrainedModel) -> int:
    """The weights in `final/`: only the adapter, if it was not merged."""
    alone = hasattr(model, "get_base_model")
    kept = (p for p in model.parameters() if p.requires_grad or not alone)
    return sum(p.numel() * p.element_size() for p in kept)


def half_copies(layers: Sequence[nn.Module], half: torch.dtype | None) -> int:
    """Bytes of the copies of float32 weights that autocast keeps in a step."""
    if half is None:
        return 0
    weights = (p for layer in layers for p in layer.parameters())
    return sum(half.itemsize * p.numel() for p in weights if p.dtype == torch.float32)


def optimizer_numbers(options: TrainOptions) -> float:
    """The optimizer's state in numbers per trained parameter, from a step on a small matrix."""
    small = nn.Linear(256, 256, bias=False)
    optimizer = optimizer_of(options, small)
    small(torch.zeros(1, 256)).sum().backward()
    optimizer.step()
    held = (x for state in optimizer.state.values() for x in state.values())
    return sum(x.numel() for x in held if isinstance(x, torch.Tensor)) / small.weight.numel()

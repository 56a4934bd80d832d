"""Liger kernels for the student: norms, rotary positions and gated MLPs, on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from typing import TYPE_CHECKING, Any

from kdcore import Patch, RunError, Stage, component, hookimpl

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PREFIX = "apply_liger_kernel_to_"
_LOSSES = ("cross_entropy", "fused_linear_cross_entropy")  # the engine's, so always off


@component
class Liger(Patch):
    """Fused kernels of `liger-kernel` for the trunk, on an NVIDIA GPU; head and losses keep theirs.

    Liger patches the classes of the model's type. A teacher of the same type that is loaded
    afterwards has the kernels too, and cannot stay on the CPU.
    """

    name = "liger"

    def faults(self, recipe: Stage) -> Iterable[str]:
        """Report a missing library. A missing GPU is reported when the run starts."""
        if find_spec("liger_kernel") is None:
            yield "the patch 'liger' needs liger-kernel: pip install \"kdcore[gpu]\""

    def apply(self, model: PreTrainedModel) -> PreTrainedModel:
        """Apply the kernels that Liger has for the model's type."""
        import torch

        if not torch.cuda.is_available():
            raise RunError(
                "the patch 'liger' needs an NVIDIA GPU; take it out of [[student.patch]]"
            )
        kernels = import_module("liger_kernel.transformers")
        kind = model.config.model_type
        apply: Any = getattr(kernels, f"{_PREFIX}{kind}", None)
        if apply is None:
            known = [
                name.removeprefix(_PREFIX) for name in dir(kernels) if name.startswith(_PREFIX)
            ]
            raise RunError(f"liger has no kernels for {kind!r}; it has {', '.join(sorted(known))}")
        off = {name: False for name in _LOSSES if name in signature(apply).parameters}
        apply(model=model, **off)
        return model


@hookimpl
def kdcore_patches() -> Sequence[type[Patch]]:
    """The patch `liger`."""
    return [Liger]

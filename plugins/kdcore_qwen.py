"""Teachers of the Qwen2.5 family, by size and variant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from kdcore_hf import ModelTeacher

from kdcore import Teacher, component, hookimpl


@component
class QwenTeacher(ModelTeacher):
    """A Qwen2.5 model: by `size` and `variant` from the hub, or `model` as a folder or name."""

    name = "qwen"
    model: str | None = None
    size: Literal["0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B"] | None = None
    variant: Literal["base", "instruct"] | None = None  # with a size; base by default

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.model is None) == (self.size is None):
            raise ValueError("give either model or size")
        if self.model is not None and self.variant is not None:
            raise ValueError("variant goes with size; a model is named whole")

    def source(self) -> str:
        """The option `model`, or the name on the hub that size and variant make."""
        if self.model is not None:
            return self.model
        suffix = "-Instruct" if self.variant == "instruct" else ""
        return f"Qwen/Qwen2.5-{self.size}{suffix}"


@hookimpl
def kdcore_teachers() -> Sequence[type[Teacher]]:
    """The teacher `qwen`."""
    return [QwenTeacher]

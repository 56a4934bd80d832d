"""Teachers of the Qwen2.5 family, by size and variant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from kdcore_hf import ModelTeacher
from pydantic import Field

from kdcore import Teacher, component, hookimpl


@component
class QwenTeacher(ModelTeacher):
    """A Qwen2.5 model: by `size` and `variant` from the hub, or any `model` by folder or name."""

    name = "qwen"
    model: Annotated[
        str | None, Field(description='a folder, a name on the hub, or "@stage"; or give size')
    ] = None
    size: Annotated[
        Literal["0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B"] | None,
        Field(description="of the model on the hub; or give model"),
    ] = None
    variant: Annotated[
        Literal["base", "instruct"] | None, Field(description="with size; base by default")
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.model is None) == (self.size is None):
            raise ValueError("give either model or size")
        if self.model is not None and self.variant is not None:
            raise ValueError("variant goes with size; model takes a full name")

    def source(self) -> str:
        """The option `model`, or the hub name for this size and variant."""
        if self.model is not None:
            return self.model
        suffix = "-Instruct" if self.variant == "instruct" else ""
        return f"Qwen/Qwen2.5-{self.size}{suffix}"


@hookimpl
def kdcore_teachers() -> Sequence[type[Teacher]]:
    """The teacher `qwen`."""
    return [QwenTeacher]

"""The student: its table in a recipe, and components that change it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from kdcore.api.component import Component
from kdcore.api.train_options import _options

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Patch(Component):
    """A change to a fresh student: initialisation, adapters, kernels."""

    component_kind: ClassVar[str] = "patch"

    def apply(self, model: PreTrainedModel) -> PreTrainedModel:
        """Called once, before training and before a checkpoint is loaded."""
        raise NotImplementedError

    def finish(self, model: PreTrainedModel) -> PreTrainedModel:
        """Called before the final save, on every process, such as to merge adapters.

        The model it returns replaces the run's student. Does nothing by default.
        """
        return model


@_options
class StudentOptions:
    """`[student]`: a model to load, or the config of a freshly initialised one."""

    model: Annotated[str, Field(min_length=1)] | None = None
    """A hub id, a folder, or "@STAGE" for the final weights of a stage; instead of `config`."""
    config: dict[str, object] | None = None
    """The config of a freshly initialised model, with `model_type`; instead of `model`."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """The dtype of the weights."""
    attention: str | None = None
    """The attention implementation, as transformers names it."""
    balance: Literal["config", "none"] = "config"
    """With "none", a mixture of experts trains without the balance loss of its config."""
    patch: list[Patch] = Field(default_factory=list)
    """Changes to the model, in order."""

    @field_validator("config")
    @classmethod
    def _of_a_type(cls, config: dict[str, object] | None) -> dict[str, object] | None:
        if config is not None and not isinstance(config.get("model_type"), str):
            raise ValueError('config needs model_type, such as model_type = "llama"')
        return config

    @property
    def patches(self) -> tuple[Patch, ...]:
        """The patches of the fresh student, in order."""
        return tuple(self.patch)

"""Pruning: initialise a student with some layers of a larger model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from kdcore import Patch, UsageError, component, hookimpl

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel


@component
class Prune(Patch):
    """Keep some layers of the student and drop the others.

    `layers` are the ones to keep, counted from 0. `keep` instead keeps that many at even distances,
    including the first and the last. Embeddings, final norm and head are unchanged. With a teacher
    of the same weights this is depth pruning followed by distillation (Muralidharan et al., 2024,
    arXiv:2407.14679, who select layers by importance).
    """

    name = "prune"
    keep: Annotated[int | None, Field(ge=1, description="layers, at even distances")] = None
    layers: Annotated[list[int] | None, Field(min_length=1, description="to keep, from 0")] = None

    def faults(self, recipe: object) -> Iterator[str]:
        """Require one of the two options, and layers in ascending order."""
        if (self.keep is None) == (self.layers is None):
            yield "set either keep or layers"
        elif self.layers is not None and self.layers != sorted({*self.layers}):
            yield "layers should be in ascending order, each once"

    def apply(self, model: PreTrainedModel) -> PreTrainedModel:
        """Drop the layers from the model and from its config."""
        stack = _layers(model)
        kept = self._kept(len(stack))
        _shorten(model.config, len(stack), kept)
        for place, layer in enumerate(stack[index] for index in kept):
            stack[place] = _renumbered(layer, place)
        del stack[len(kept) :]
        return model

    def _kept(self, count: int) -> Sequence[int]:
        if self.layers is None:
            keep = self.keep or count
            steps = max(1, keep - 1)
            kept = [round(place * (count - 1) / steps) for place in range(keep)]
        else:
            kept = self.layers
        if len(kept) > count or not 0 <= kept[0] <= kept[-1] < count:
            raise UsageError(f"the patch 'prune' has layers 0 to {count - 1} to keep some of")
        return kept


def _layers(model: PreTrainedModel) -> nn.ModuleList:
    """The model's list of layers, under any of its names."""
    from torch.nn import ModuleList

    count = model.config.get_text_config().num_hidden_layers
    lists = [each for each in model.modules() if isinstance(each, ModuleList)]
    found = [each for each in lists if len(each) == count]
    if len(found) != 1:
        raise UsageError(
            f"the patch 'prune' finds no single list of {count} layers in a "
            f"{model.config.model_type!r} model"
        )
    return found[0]


def _renumbered(layer: nn.Module, place: int) -> nn.Module:
    """Give a layer its new index: key-value caches are addressed by `layer_idx`."""
    for module in layer.modules():
        if hasattr(module, "layer_idx"):
            module.layer_idx = place  # type: ignore[assignment]
    return layer


def _shorten(config: PretrainedConfig, count: int, kept: Sequence[int]) -> None:
    """Adapt the config: the number of layers, and every list with an entry per layer."""
    text = config.get_text_config()
    for key, value in [*vars(text).items()]:
        if isinstance(value, list) and len(value) == count:
            setattr(text, key, [value[index] for index in kept])
    text.num_hidden_layers = len(kept)


@hookimpl
def kdcore_patches() -> Sequence[type[Patch]]:
    """The patch `prune`."""
    return [Prune]

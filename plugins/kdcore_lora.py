"""LoRA with the library peft: trains low-rank matrices next to frozen weights."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field
from torch import nn

from kdcore import Patch, RunError, Stage, UsageError, component, hookimpl

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NEEDED = 'the patch "lora" needs peft: pip install "kdcore[lora]"'


@component
class Lora(Patch):
    """Train low-rank adapters and freeze everything else.

    Hu et al. 2021, arXiv:2106.09685. A matrix W becomes W + (alpha / rank) B A, where B starts at
    zero. A and B have float32 master weights; the model keeps its own type. Adapting the head
    requires its full logits, which takes more memory.

    With merge = true, `final/` is an ordinary model in the base's type. In a half-precision type
    the merged weights are rounded once: additions below 1/256 of a weight are partly lost, so
    scores differ slightly from those of the last evaluation. student.dtype = "fp32" and merge =
    false avoid this. With merge = false, `final/` is the adapter alone and names the student's
    model as its base, by absolute path if that is a folder.
    """

    name = "lora"
    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[
        float | None, Field(gt=0, description="by default twice the rank, so the factor is 2")
    ] = None
    dropout: Annotated[float, Field(ge=0, lt=1, description="of an adapter's inputs")] = 0.0
    targets: Annotated[
        Literal["all-linear"] | list[str],
        Field(description='names as "q_proj"; all-linear leaves out the head'),
    ] = "all-linear"
    merge: Annotated[
        bool, Field(description="into the weights at the end; false: final/ is the adapter")
    ] = True

    def faults(self, recipe: Stage) -> Iterable[str]:
        """Report what prevents training the adapter, or using it outside of the run."""
        if find_spec("peft") is None:
            yield _NEEDED
        patches = [patch for patch in recipe.student.patches if isinstance(patch, Lora)]
        if patches[0] is not self:
            yield 'the student has the patch "lora" twice; put all targets into one'
        if self.merge:
            return
        if recipe.student.config is not None:
            yield (
                "merge = false saves only the adapter, and a fresh student has no saved base "
                "model; set merge = true"
            )
        before = recipe.student.patches[0]
        if not isinstance(before, Lora):
            said = f"merge = false leaves an adapter to a model without the patch {before.name!r}"
            yield f'{said}; merge it, or put the patch "lora" first'

    def apply(self, model: PreTrainedModel) -> PreTrainedModel:
        """Freeze the model and add the adapter, initialised from torch's global generator."""
        try:
            from peft import LoraConfig, TaskType, get_peft_model
        except ImportError as error:
            raise RunError(_NEEDED) from error
        if not self.merge and not model.name_or_path:
            raise UsageError(
                "merge = false saves only the adapter, and this student has no base model to "
                "name: it is fresh, or was an adapter itself; set merge = true"
            )
        config = LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=self.rank,
            lora_alpha=cast(int, self.alpha or 2 * self.rank),
            lora_dropout=self.dropout,
            target_modules=self._modules(model),
            fan_in_fan_out=any(_is_transposed(module) for module in model.modules()),
        )
        try:
            with warnings.catch_warnings():
                # peft looks for checkpointing of activations under an old name.
                warnings.simplefilter("ignore", FutureWarning)
                adapted = get_peft_model(model, config)
        except ValueError as error:
            first = str(error).split("\n")[0]
            raise UsageError(f'the patch "lora" cannot adapt this model: {first}') from error
        return cast("PreTrainedModel", adapted)

    def finish(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model with the adapter merged, or the adapter with the name of its base."""
        adapted: Any = model
        if self.merge:
            with warnings.catch_warnings():
                # With the fake models of a plan, peft checks whether two weights share storage.
                warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
                return cast("PreTrainedModel", adapted.merge_and_unload())
        for config in adapted.peft_config.values():
            base = config.base_model_name_or_path
            if os.path.isdir(os.path.expanduser(base)):
                config.base_model_name_or_path = os.path.realpath(os.path.expanduser(base))
            config.target_modules = sorted(config.target_modules)  # sets have no stable order
        # Embeddings are never resized here, and checking for it would query the hub.
        adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)
        return model

    def _modules(self, model: PreTrainedModel) -> list[str]:
        if self.targets == "all-linear":
            return _all_linear(model)
        for target in self.targets:
            if not any(_is(target, name) for name, _ in model.named_modules()):
                known = ", ".join(sorted({name.rpartition(".")[2] for name in _linear(model)}))
                raise UsageError(
                    f'the patch "lora" has the target {target!r}, and {type(model).__name__} has '
                    f"no such module; its linear ones are {known}"
                )
        if self.merge:
            _refuse_tied(model, self.targets)
        return list(self.targets)


@hookimpl
def kdcore_patches() -> Sequence[type[Patch]]:
    """The patch `lora`."""
    return [Lora]


def _is(target: str, name: str) -> bool:
    """Whether a module is named by `target`, as peft matches it: the full name, or its suffix."""
    return name == target or name.endswith(f".{target}")


def _is_transposed(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)  # GPT-2's linear layers


def _linear(model: PreTrainedModel) -> list[str]:
    """Every linear layer except the head."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return [
        name
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or _is_transposed(module)) and module is not head
    ]


def _all_linear(model: PreTrainedModel) -> list[str]:
    """Their last name components, as other programs expect; full names if these are ambiguous."""
    whole = _linear(model)
    last = sorted({name.rpartition(".")[2] for name in whole})
    meant = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in last]
    return last if meant == whole else whole


def _refuse_tied(model: PreTrainedModel, targets: Sequence[str]) -> None:
    """Reject targets with tied weights: merging would change the other module too."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    embeddings = model.get_input_embeddings()
    if getattr(head, "weight", None) is not embeddings.weight:
        return
    for name, module in model.named_modules():
        if module in (head, embeddings) and any(_is(target, name) for target in targets):
            raise UsageError(
                f"the embeddings and the head of {type(model).__name__} are one matrix, so an "
                f"adapter of {name!r} cannot be merged; leave it out, or set merge = false"
            )

"""Teachers and tokenizers that Hugging Face's `from_pretrained` loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import torch
from pydantic import Field

from kdcore import (
    Batch,
    Data,
    LanguageModel,
    LogitsAt,
    Run,
    RunError,
    Teacher,
    Tokenizer,
    component,
    dtype_of,
    hookimpl,
    load_config,
    load_model,
    load_tokenizer,
    model_fingerprint,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@component
class ModelTeacher(Teacher):
    """A causal language model in evaluation mode, none of it trained.

    Subclasses say in `source` which model.
    """

    dtype: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        Field(description="auto: a half type on a GPU, fp32 on a CPU"),
    ] = "auto"
    device: Annotated[str | None, Field(description="by default the run's")] = None
    quantise: Annotated[
        Literal["8bit", "4bit"] | None, Field(description="needs CUDA and bitsandbytes")
    ] = None
    adapter: Annotated[
        str | None, Field(description="a PEFT adapter on the model: a folder or a name on the hub")
    ] = None

    def __post_init__(self) -> None:
        self._model: LanguageModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None

    def source(self) -> str:
        """The model's folder or its name on the hub."""
        raise NotImplementedError

    def load(self, run: Run) -> None:
        """Put the weights, and an adapter's, onto the device."""
        device = torch.device(self.device or run.device)
        dtype = dtype_of(self.dtype, device)
        model = load_model(self.source(), dtype=dtype, device=device, quantise=self.quantise)
        if self.adapter is not None:
            model = _adapted(model, self.adapter)
        model.eval().requires_grad_(False)  # type: ignore[no-untyped-call]
        self._model = LanguageModel(model)

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The one that lies beside the weights."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.source())
        return self._tokenizer

    def architecture(self, device: torch.device) -> PretrainedConfig:
        """The model's, with the type and the quantisation that its weights are held in."""
        config = load_config(self.source())
        config.dtype = dtype_of(self.dtype, torch.device(self.device or device))
        if self.quantise is not None:
            config.quantization_config = {f"load_in_{self.quantise}": True}
        return config

    def read(self, batch: Batch) -> LogitsAt:
        """Run the trunk once; logits are made where they are asked for."""
        assert self._model is not None, "a teacher is read after it was loaded"
        model, home = self._model, batch.input_ids.device
        # The teacher stays in its own type, whatever the student trains in.
        with torch.autocast(model.device.type, enabled=False):
            states = model.states(_moved(batch, model.device))
        return lambda positions: model.logits(states[positions.to(states.device)]).to(home)

    def fingerprint(self) -> str:
        """What the weights are and how they are held; not where they lie."""
        adapter = model_fingerprint(self.adapter) if self.adapter is not None else None
        weights = model_fingerprint(self.source())
        return f"model({weights=}, {adapter=}, dtype={self.dtype!r}, quantise={self.quantise!r})"


@component
class HfTeacher(ModelTeacher):
    """A model from a folder, from the hub, or a stage's final weights ("@stage")."""

    name = "hf"
    model: Annotated[str, Field(description='a folder, a name on the hub, or "@stage"')]

    def source(self) -> str:
        """The option `model`."""
        return self.model


@component
class HfTokenizer(Tokenizer):
    """The tokenizer of a model: a folder or a name on the hub."""

    name = "hf"
    model: Annotated[str, Field(description="a folder or a name on the hub")]

    def load(self, run: Run, data: Data) -> PreTrainedTokenizerBase:
        """Load it. A tokenizer that cannot end a text is refused."""
        tokenizer = load_tokenizer(self.model, key="tokenizer.model")
        if tokenizer.eos_token_id is None:
            raise RunError(f"the tokenizer of {self.model!r} has no token that ends a text (eos)")
        return tokenizer


def _moved(batch: Batch, device: torch.device) -> Batch:
    if batch.input_ids.device == device:
        return batch
    mask = batch.attention_mask
    return replace(
        batch,
        input_ids=batch.input_ids.to(device),
        position_ids=batch.position_ids.to(device),
        attention_mask=None if mask is None else mask.to(device),
        document=batch.document.to(device),
    )


def _adapted(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """The model with a PEFT adapter, unmerged: half weights would round most of it away."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise RunError('an adapter needs peft: pip install "kdcore[lora]"') from error
    path = str(Path(adapter).expanduser())
    try:
        adapted = PeftModel.from_pretrained(model, path)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().split("\n")[0]
        raise RunError(f"cannot load the adapter {adapter!r}: {first}") from error
    return cast("PreTrainedModel", adapted)


@hookimpl
def kdcore_teachers() -> Sequence[type[Teacher]]:
    """The teacher `hf`."""
    return [HfTeacher]


@hookimpl
def kdcore_tokenizers() -> Sequence[type[Tokenizer]]:
    """The tokenizer `hf`."""
    return [HfTokenizer]

"""Teachers and tokenizers loaded with Hugging Face's `from_pretrained`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdcore import (
    Batch,
    Completion,
    Data,
    LanguageModel,
    LogitsFn,
    NextTokens,
    Prompt,
    Run,
    RunError,
    Sampling,
    StatesFn,
    Teacher,
    Tokenizer,
    component,
    dtype_of,
    hookimpl,
    load_config,
    load_model,
    load_tokenizer,
    model_fingerprint,
    next_tokens,
    sample,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from kdcore import Stage


class Trunk:
    """A model's weights except its head, kept on the host while other models use the device."""

    def __init__(self) -> None:
        self._weights: list[tuple[torch.nn.Parameter, Tensor, Tensor]] = []

    def take(self, model: LanguageModel) -> None:
        """Copy a model's weights to the host, except what the head uses (shared embeddings too)."""
        heads = {id(model.weight), id(model.bias)}
        for one in model.model.parameters():
            if id(one) not in heads:
                kept = one.data.to("cpu", copy=True)
                kept = kept.pin_memory() if one.is_cuda else kept
                self._weights.append((one, kept, one.data.new_empty(0)))

    def leave(self) -> None:
        """Free the weights on the device."""
        for one, _, nothing in self._weights:
            one.data = nothing

    def come(self) -> None:
        """Copy the weights back to the device."""
        for one, kept, nothing in self._weights:
            one.data = kept.to(nothing.device, non_blocking=True)


@component
class ModelTeacher(Teacher):
    """A frozen causal language model in evaluation mode.

    If the name refers to a PEFT adapter, its base model is loaded and the adapter added. Subclasses
    name the model in `source`.
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
    offload: Annotated[
        bool, Field(description="layers stay on the CPU and move to the GPU as they run")
    ] = False
    shard: Annotated[
        Literal["none", "full"],
        Field(description="full: the processes of a run divide the weights between them"),
    ] = "none"
    elsewhere = frozenset({"shard"})

    def __post_init__(self) -> None:
        if self.offload and self.quantise is not None:
            raise ValueError("offload and quantise exclude each other; leave out one of them")
        if self.device == "cpu" and (self.offload or self.quantise is not None):
            key = "offload" if self.offload else "quantise"
            raise ValueError(f'{key} is for a GPU, and device is "cpu"; leave out one of them')
        for key in ("quantise", "offload", "device"):
            if self.shard == "full" and getattr(self, key):
                raise ValueError(f'shard = "full" and {key} exclude each other; leave out one')
        self._model: LanguageModel | None = None
        self._head: Callable[[Tensor], Tensor] | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._trunk: Trunk | None = None  # None: the trunk stays on the device

    def source(self) -> str:
        """A folder or a hub name, of a model or of an adapter with its base."""
        raise NotImplementedError

    def faults(self, recipe: Stage) -> Iterable[str]:
        """Report missing libraries. A missing GPU is reported when the run starts."""
        folder = os.path.expanduser(self.source())
        own = os.path.isfile(os.path.join(folder, "adapter_config.json"))
        if (own or self.adapter is not None) and find_spec("peft") is None:
            adapter = self.source() if own else self.adapter
            yield f'the adapter {adapter!r} needs peft: pip install "kdcore[lora]"'
        if self.quantise and torch.cuda.is_available() and find_spec("bitsandbytes") is None:
            yield f'quantise = "{self.quantise}" needs bitsandbytes: pip install "kdcore[gpu]"'

    def missing(self) -> Iterator[str]:
        """The model's folder and the adapter's, if there is none."""
        yield from _absent(self.source(), self.adapter)

    def load(self, run: Run) -> None:
        """Load the weights, and an adapter's, onto the device."""
        device = torch.device(self.device or run.device)
        dtype = dtype_of(self.dtype, device)
        model = load_model(
            self.source(),
            dtype=dtype,
            device=device,
            quantise=self.quantise,
            adapter=self.adapter,
            offload=self.offload,
            sharded=self.is_sharded() and run.processes > 1,
        )
        model.eval().requires_grad_(False)  # type: ignore[no-untyped-call]
        self._model = LanguageModel(model)
        # Hidden states are far smaller than logits; logits are computed where they are used.
        self._head = self._model.head(run.device) if device != run.device else None
        if self._trunk is not None:
            self._trunk.take(self._model)
            self._trunk.leave()

    def moves(self) -> bool:
        """Whether it can move to the host: not quantised, offloaded or sharded."""
        return self.quantise is None and not self.offload and not self.is_sharded()

    def is_sharded(self) -> bool:
        """Set by `shard`; a run of one process holds all of it anyway."""
        return self.shard == "full"

    def to_host(self) -> None:
        """Move the trunk's weights off the device; the head stays."""
        if self._trunk is None:
            self._trunk = Trunk()
            if self._model is not None:
                self._trunk.take(self._model)
        self._trunk.leave()

    def to_device(self) -> None:
        """Move them back, from pinned memory if there is a GPU."""
        assert self._trunk is not None, "it left before"
        self._trunk.come()

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer saved with the weights."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.source())
        return self._tokenizer

    def architecture(self, device: torch.device) -> PretrainedConfig:
        """The model's architecture, and the data type or quantisation of its weights."""
        config = load_config(self.source())
        place = torch.device(self.device or device)
        config.dtype = dtype_of(self.dtype, place)
        config.offload = self.offload and place.type != "cpu"
        if self.quantise is not None:
            config.quantization_config = {f"load_in_{self.quantise}": True}
        return config

    def read(self, batch: Batch) -> LogitsFn:
        """Run the trunk once; logits are computed on demand."""
        return self.read_states(batch, ())[0]

    def layer_sizes(self) -> Sequence[int]:
        """The model's layer widths."""
        model = self._loaded()
        model.watch_layers(())
        return model.layer_sizes

    def read_states(self, batch: Batch, layers: Sequence[int]) -> tuple[LogitsFn, StatesFn]:
        """Like `read`, and return the hidden states of these layers only."""
        model, home = self._loaded(), batch.input_ids.device
        head = self._head or model.logits
        moved = _moved(batch, model.device)
        # The teacher computes in its own type, whatever the student trains in.
        with torch.autocast(model.device.type, enabled=False):
            states, kept = model.layer_states(moved, layers)
        return (
            lambda positions: head(states[positions.to(states.device)].to(home)),
            lambda positions: [each[positions.to(each.device)].to(home) for each in kept],
        )

    def _loaded(self) -> LanguageModel:
        assert self._model is not None, "a teacher is read after it was loaded"
        return self._model

    def writes(self) -> bool:
        """Always."""
        return True

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Sequence[Completion]:
        """One answer per prompt, generated as a batch in the teacher's own type."""
        assert self._model is not None, "a teacher writes after it was loaded"
        with torch.autocast(self._model.device.type, enabled=False):
            return sample(self._model, prompts, sampling, source="teacher")

    def next_tokens(self, rows: Sequence[Sequence[int]], vocabulary: int) -> NextTokens:
        """The model's next-token scores, in the teacher's own type."""
        assert self._model is not None, "a teacher writes after it was loaded"
        return _InOwnType(self._model, rows, vocabulary)

    def fingerprint(self) -> str:
        """Identifies weights and their type; independent of where they are stored."""
        # Not the base that the adapter's config names: `source` is what it is loaded onto.
        adapter = self.adapter and model_fingerprint(self.adapter, base=False)
        weights = model_fingerprint(self.source())
        return f"model({weights=}, {adapter=}, dtype={self.dtype!r}, quantise={self.quantise!r})"


class _InOwnType:
    """A model's next-token scores, computed in its own type whatever the caller's precision."""

    def __init__(
        self, model: LanguageModel, rows: Sequence[Sequence[int]], vocabulary: int
    ) -> None:
        self._device = model.device.type
        with torch.autocast(self._device, enabled=False), torch.no_grad():
            self._tokens = next_tokens(model, rows, vocabulary)

    def logits(self) -> Tensor:
        """[rows, V]."""
        with torch.autocast(self._device, enabled=False), torch.no_grad():
            return self._tokens.logits()

    def advance(self, ids: Tensor, going: Sequence[int]) -> None:
        """Append one token to each of these rows."""
        with torch.autocast(self._device, enabled=False), torch.no_grad():
            self._tokens.advance(ids, going)


@component
class HfTeacher(ModelTeacher):
    """A model from a folder, from the hub, or the final weights of a stage ("@stage")."""

    name = "hf"
    model: Annotated[str, Field(description='a folder, a name on the hub, or "@stage"')]

    def source(self) -> str:
        """The option `model`."""
        return self.model


@component
class HfTokenizer(Tokenizer):
    """A model's tokenizer: a folder or a hub name."""

    name = "hf"
    model: Annotated[str, Field(description="a folder or a name on the hub")]

    def missing(self) -> Iterator[str]:
        """The folder, if there is none."""
        yield from _absent(self.model)

    def load(self, run: Run, data: Data) -> PreTrainedTokenizerBase:
        """Load it. A tokenizer without an end-of-text token is an error."""
        tokenizer = load_tokenizer(self.model, key="tokenizer.model")
        if tokenizer.eos_token_id is None:
            raise RunError(f"the tokenizer of {self.model!r} has no end-of-text token (eos)")
        return tokenizer


def _absent(*names: str | None) -> Iterator[str]:
    """A sentence for each name that begins like a path and is no folder."""
    paths = [name for name in names if name and name.startswith((".", "/", "~"))]
    for path in paths:
        if not os.path.isdir(os.path.expanduser(path)):
            yield f"there is no folder {path!r} in {os.getcwd()}"


def _moved(batch: Batch, device: torch.device) -> Batch:
    if batch.input_ids.device == device:
        return batch
    mask, packing = batch.attention_mask, batch.packing
    if packing is not None:
        real = None if packing.real is None else packing.real.to(device)
        packing = replace(packing, real=real, starts=packing.starts.to(device))
    return replace(
        batch,
        packing=packing,
        input_ids=batch.input_ids.to(device),
        position_ids=batch.position_ids.to(device),
        attention_mask=None if mask is None else mask.to(device),
        document=batch.document.to(device),
    )


@hookimpl
def kdcore_teachers() -> Sequence[type[Teacher]]:
    """The teacher `hf`."""
    return [HfTeacher]


@hookimpl
def kdcore_tokenizers() -> Sequence[type[Tokenizer]]:
    """The tokenizer `hf`."""
    return [HfTokenizer]

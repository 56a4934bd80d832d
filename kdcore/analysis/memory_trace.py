"""The memory of a micro-batch, traced on fake tensors.

Nothing is computed or allocated, but every tensor counts while it would be alive. Trunk, chunked
loss and losses are those of a run, always as on a CPU: a GPU keeps the same tensors. Memory inside
kernels and allocators is not seen.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdcore.api.loss import Loss
from kdcore.data.batch import Batch, LogitsFn, Split
from kdcore.models.head import logits_of, nll_from_logits, upcast
from kdcore.objective.chunked_loss import ChunkedLoss, ChunkedLossInputs
from kdcore.objective.hidden_states import checked_values
from kdcore.objective.losses import values_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kdcore.api.loss import HiddenStatesLoss


@dataclass(frozen=True)
class Footprint:
    """Bytes of one process in addition to weights and optimizer."""

    activations: int  # kept by the trunk for the backward pass
    chunk: int  # the most that scoring, a chunk's logits and the losses add
    peak: int  # the peak of a step, including gradients


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A micro-batch, and how it is used."""

    rows: int
    time: int
    vocabulary: int
    chunk: int
    losses: Sequence[Loss]  # losses on logits
    precision: torch.dtype | None  # of autocast
    selects: bool = False
    repeats: bool = False  # the step has several, so gradients exist already
    hidden: Sequence[HiddenStatesLoss] = ()


_MASK = 5  # bytes per pair of tokens in a row: the attention mask as bools and as numbers


@contextmanager
def fake_models() -> Iterator[None]:
    """A context in which models are made without memory for their weights."""
    # Losses keep small tensors: gold its shared ids.
    with _grouped_in_any_type(), FakeTensorMode(allow_non_fake_inputs=True):
        yield


@contextmanager
def _grouped_in_any_type() -> Iterator[None]:
    """Experts multiply by an operator of transformers: the fake `grouped_mm` takes bf16 only."""
    from transformers.integrations import moe

    names = vars(moe)
    before = names.get("_can_use_grouped_mm")  # private: newer versions may lack it
    names["_can_use_grouped_mm"] = lambda *_: False
    try:
        yield
    finally:
        names["_can_use_grouped_mm"] = before


def on_device(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """A model from the meta device, moved in `fake_models`; tied weights stay tied."""
    moved: dict[int, Tensor] = {}
    for module in model.modules():
        both: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for held in both:
            for name, tensor in held.items():
                if tensor is not None:
                    if id(tensor) not in moved:
                        moved[id(tensor)] = _empty(tensor, device)
                    held[name] = moved[id(tensor)]
    return model


def _empty(like: Tensor, device: torch.device) -> Tensor:
    made = torch.empty_like(like, device=device, requires_grad=False)
    return nn.Parameter(made, like.requires_grad) if isinstance(like, nn.Parameter) else made


def footprint(
    student: PreTrainedModel,
    teachers: Sequence[PreTrainedModel],
    references: Sequence[PreTrainedModel],
    asked: Pass,
) -> Footprint:
    """Trace one step's forward and backward. Called, with models made, in `fake_models`.

    `teachers` are averaged for the losses; a selection reads `references` for their likelihoods.
    """
    student.zero_grad()
    meter = _Meter()
    with meter:
        earlier = _earlier_gradients(student) if asked.repeats else []
        kept, added = _run(student, teachers, references, asked, meter)
    del earlier
    return Footprint(kept, added, meter.peak)


def _earlier_gradients(student: PreTrainedModel) -> list[Tensor]:
    """Float32 gradients of the micro-batches before; those of bf16 weights are apart from them."""
    found = []
    for parameter in student.parameters():
        if parameter.requires_grad:
            found.append(torch.empty_like(parameter, dtype=torch.float32).detach())
            if parameter.dtype == torch.float32:
                parameter.grad = found[-1]
    return found


def activations(student: PreTrainedModel, asked: Pass) -> int:
    """What the trunk alone keeps for the backward pass of a micro-batch."""
    batch, meter = _batch(asked), _Meter()
    with meter:
        model = _Model(student.train(), batch, asked.precision)
        kept = meter.live
    del model
    return kept


def reading(model: PreTrainedModel, rows: int, time: int, precision: torch.dtype | None) -> int:
    """The peak while a model reads prompts of this many tokens before generation."""
    meter = _Meter()
    base = getattr(model, "get_base_model", lambda: model)()
    plain = type(model.get_output_embeddings()) is nn.Linear  # type: ignore[no-untyped-call]
    module = base.base_model if plain else model
    training = model.training
    _still(model)
    with torch.no_grad(), _autocast(precision), meter:
        ids = torch.zeros(rows, time, dtype=torch.int64)
        module(input_ids=ids, use_cache=True)
    model.train(training)
    return meter.peak + _MASK * rows * time * time


def _run(
    student: PreTrainedModel,
    teachers: Sequence[PreTrainedModel],
    references: Sequence[PreTrainedModel],
    asked: Pass,
    meter: _Meter,
) -> tuple[int, int]:
    """One micro-batch: what its trunk keeps, and what scoring and losses add."""
    batch = _batch(asked)
    with torch.no_grad():
        read = [_Model(_still(model), batch, None) for model in teachers]
        references_read = [_Model(_still(model), batch, None) for model in references]
    before = meter.live
    model = _Model(student.train(), batch, asked.precision)
    kept = meter.live - before
    peak = meter.watch()
    if asked.selects:
        for one in (model, *references_read):
            nll_from_logits(one.logits, batch)(batch.valid, batch.labels)
    loss: Any = model.states.sum()
    if asked.losses:
        loss = ChunkedLoss.apply(  # type: ignore[no-untyped-call]
            model.states, model.weight, model.bias, model.computed, _work(asked, batch, read)
        )
    other = read[0].states if read else model.states.detach()
    shown = [[torch.empty_like(other) for _ in each.layers] for each in asked.hidden]
    for each, theirs in zip(asked.hidden, shown, strict=True):
        ours = [model.states[batch.valid] for _ in each.layers]
        values = checked_values(each, ours, [states[batch.valid] for states in theirs])
        loss = loss + values.sum()
    added = peak() - before - kept
    loss.backward()
    return kept, added


def _still(model: PreTrainedModel) -> PreTrainedModel:
    return model.eval()  # type: ignore[no-untyped-call,no-any-return]


class _Model:
    """A model that has read the batch."""

    def __init__(self, model: PreTrainedModel, batch: Batch, precision: torch.dtype | None) -> None:
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        plain = type(head) is nn.Linear
        self.weight = cast(nn.Parameter, head.weight) if plain else None
        self.bias = head.bias if plain else None
        self.computed = self.weight
        if self.weight is not None and precision is not None:
            self.computed = cast(nn.Parameter, self.weight.detach().to(precision))
        base = getattr(model, "get_base_model", lambda: model)()
        module = base.base_model if plain else model
        with _autocast(precision):
            out = module(**_inputs(module, batch))
        self.states: Tensor = (out[0] if plain else out.logits).flatten(0, 1)
        self._vocabulary = batch.vocabulary

    def logits(self, positions: Tensor) -> Tensor:
        """As in a run."""
        if self.computed is None:
            return upcast(self.states[positions])[:, : self._vocabulary]
        with torch.no_grad():
            made = logits_of(self.states[positions], self.computed, self.bias)
        return made[:, : self._vocabulary]


def _autocast(precision: torch.dtype | None) -> AbstractContextManager[object]:
    return nullcontext() if precision is None else torch.autocast("cpu", precision)


def _inputs(module: nn.Module, batch: Batch) -> dict[str, Any]:
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    if "position_ids" in inspect.signature(module.forward).parameters:
        inputs["position_ids"] = batch.position_ids
    return inputs


def _batch(asked: Pass) -> Batch:
    ids = torch.zeros(asked.rows, asked.time, dtype=torch.int64)
    flat, positions = torch.arange(ids.numel()), torch.arange(asked.time).expand_as(ids)
    split = Split("train", "", np.empty(0, np.int64))
    return Batch(ids, positions, None, ids, ids, flat, flat, asked.vocabulary, split)


def _work(asked: Pass, batch: Batch, teachers: Sequence[_Model]) -> ChunkedLossInputs:
    needed = any(loss.needs_teacher for loss in asked.losses)
    return ChunkedLossInputs(
        positions=batch.valid,
        labels=batch.labels,
        weights=torch.ones(len(asked.losses), len(batch.valid)),
        values=values_of(asked.losses),
        teacher=_together(teachers, batch) if needed else None,
        vocabulary=asked.vocabulary,
        chunk=asked.chunk,
    )


def _together(teachers: Sequence[_Model], batch: Batch) -> LogitsFn:
    def logits(positions: Tensor) -> Tensor:
        if not teachers:  # there is no model, but there would be logits
            return torch.empty(len(positions), batch.vocabulary)
        return reduce(torch.add, (each.logits(positions) for each in teachers))

    return logits


class _Meter(TorchDispatchMode):
    """Counts the bytes of live tensors that were created while it is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = self._recent = 0
        self._sizes: dict[int, int] = {}

    def watch(self) -> Callable[[], int]:
        """The peak since this call, until it is read."""
        self._recent = self.live
        return lambda: self._recent

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "prim":  # queries, such as a tensor's device
            return out
        # Views of earlier tensors, such as weights, take no memory.
        given = {id(storage) for storage in _storages((args, kwargs))}
        for storage in _storages(out):
            if id(storage) not in given and id(storage) not in self._sizes:
                self._count(storage)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        self._sizes[key] = size
        self.live += size
        self.peak, self._recent = max(self.peak, self.live), max(self._recent, self.live)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def _storages(tree: object) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]

"""A stage's requirements: parameters, memory and disk. Loads no weights.

Memory is the peak of one process: on the CPU, or on the device if there is one. Memory-mapped
files, such as tokenised data, can be evicted and do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import UnsupportedFakeTensorException

from kdcore.analysis.blank import BlankPrepared, of_single_tokens
from kdcore.analysis.memory_trace import (
    FakeModels,
    Footprint,
    Pass,
    activations,
    footprint,
    on_device,
)
from kdcore.analysis.parameters import Part, learned_parts, parameters_of, parts_of
from kdcore.analysis.tensors import Listed, tensors_of
from kdcore.analysis.work import Shape, Work, shape_of
from kdcore.analysis.writing import Models, Writing, writing_bytes
from kdcore.api.component import Component
from kdcore.api.loss import HiddenStatesLoss, Loss
from kdcore.api.options import iter_components
from kdcore.api.teacher import Teacher
from kdcore.errors import PluginError, RunError
from kdcore.guard import call_checked
from kdcore.models.head import chunk_size
from kdcore.models.loading import HALF, dtype_of, precision_of
from kdcore.models.offload import bytes_on_device
from kdcore.objective.hidden_states import compares_states
from kdcore.training.gpu.working_weights import WorkingWeights
from kdcore.training.micro_batch import MARGIN, cpu_default, probe
from kdcore.training.setup import enable_checkpointing, optimizer_of
from kdcore.training.student import finished, patched

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from kdcore.api.run import Stage
    from kdcore.api.train_options import TrainOptions


# Measured: a process before it makes its student; a CUDA context with its kernels.
_LIBRARIES = {"cpu": 590_000_000, "cuda": 600_000_000}
_ALLOCATOR = 1.1  # measured on CPUs: allocated over requested bytes of temporary tensors

Amounts = Sequence[tuple[str, int]]
"""Names and bytes."""


@dataclass(frozen=True)
class Estimate:
    """The requirements of a stage, as far as they are known."""

    parts: Sequence[Part]  # of the student
    micro_batch: int  # rows
    device: str
    memory: Amounts
    peak: int  # bytes of memory at the peak: not the sum of all parts
    checkpointed: int | None  # activations with train.checkpointing; None if it is on
    checkpoint: int  # bytes of one on disk
    final: int  # bytes of the finished student on disk
    unknown: Sequence[str]  # what is left out, and why
    tensors: Sequence[Listed] = ()  # of the student
    tree: str = ""  # of its modules
    work: Work | None = None  # of a step


@dataclass(frozen=True, eq=False)
class _Teacher:
    """A teacher's model without weights, and the bytes of its weights."""

    name: str  # with its parameter count
    model: PreTrainedModel
    size: int


def estimate(
    stage: Stage,
    config: PretrainedConfig,
    *,
    ids: int | None,
    longest: int | None,
    rows: int | None = None,
) -> Estimate:
    """Estimate a stage. `ids` is the tokenizer's size, `longest` the tokens of the longest row.

    `rows` is the number per step, if known.
    """
    state = _state_of(stage.train)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    losses = of_single_tokens([term.loss for term in stage.terms if not compares_states(term)])
    with FakeModels():
        return _Estimating(stage, config, device, ids, longest, rows, losses).done(state)


def _takes_turns(component: Component) -> bool:
    return isinstance(component, Teacher) and component.takes_turns()


def _in_turn(teachers: Sequence[_Teacher]) -> list[_Teacher]:
    """Only the largest counts in full, the others with their heads."""
    largest = max(teachers, key=lambda one: one.size, default=None)
    return [one if one is largest else replace(one, size=_bytes(_head(one))) for one in teachers]


def _head(teacher: _Teacher) -> nn.Module:
    return cast(nn.Module, teacher.model.get_output_embeddings())  # type: ignore[no-untyped-call]


class _Estimating:
    """One stage, with fake models."""

    def __init__(
        self,
        stage: Stage,
        config: PretrainedConfig,
        device: torch.device,
        ids: int | None,
        longest: int | None,
        rows: int | None,
        losses: Sequence[Loss],
    ) -> None:
        self.stage, self.options, self.device = stage, stage.train, device
        self.rows, self.losses = rows or stage.train.drawn, losses
        self.unknown: list[str] = []
        self.student = self._student(config)
        self.teachers = self._teachers_in(stage.teacher)
        self.references = self._teachers_in(stage.selection)
        self.writers = self._teachers_in(stage.rollout)
        self.time = min(stage.data.block, longest or stage.data.block)
        models = [self.student, *(one.model for one in self.teachers)]
        self.hidden = self._hidden()
        widths = [model.config.get_text_config().vocab_size for model in models]
        self.vocabulary = min([*widths, ids] if ids else widths)

    def _hidden(self) -> list[HiddenStatesLoss]:
        """The hidden-state losses, with their learned parameters."""
        losses = [t.loss for t in self.stage.terms if isinstance(t.loss, HiddenStatesLoss)]
        ours = _width(self.student)
        theirs = _width(self.teachers[0].model) if self.teachers else ours
        for loss in losses:
            count = len(loss.layers)
            loss.set_sizes([ours] * count, [theirs] * count, self.stage.seed)
        return losses

    def _learned(self) -> int:
        """The learned parameters of losses."""
        return sum(part.total for part in learned_parts(self.hidden))

    def _student(self, config: PretrainedConfig) -> PreTrainedModel:
        options = self.stage.student
        loaded = options.model is not None
        dtype = dtype_of(options.dtype, self.device) if loaded else torch.float32
        # Patches may move tensors that they create, which fake tensors cannot do without a device.
        with torch.device("meta"):
            student = patched(_fresh(config, dtype, options.attention), options.patches)
        return on_device(student, torch.device("cpu"))

    def _teachers_in(self, component: Component | None) -> list[_Teacher]:
        found = []
        for one in iter_components(component) if component else ():
            if isinstance(one, Teacher):
                try:
                    config = one.architecture(self.device)
                except RunError as error:
                    self.unknown.append(f"the memory of the teacher {one.name!r}: {error}")
                else:
                    found += [] if config is None else [self._teacher(one.name, config)]
        turns = [o for o in iter_components(component) if _takes_turns(o)] if component else []
        return _in_turn(found) if turns and self.device.type != "cpu" else found

    @staticmethod
    def _teacher(name: str, config: PretrainedConfig) -> _Teacher:
        model = _fresh(config, cast(torch.dtype, config.dtype), None)
        how = getattr(config, "quantization_config", None) or {}
        bits = 4 if how.get("load_in_4bit") else 8
        parameters = parameters_of(model)[0]
        size = parameters * bits // 8 if how else _bytes(model)
        if getattr(config, "offload", False):
            size = bytes_on_device(model)
        return _Teacher(f"teacher: {name}, {parameters:,} parameters", model, size)

    def done(self, state: float) -> Estimate:
        """`state` is the optimizer's, in numbers per trained parameter."""
        weights, trained = _bytes(self.student), 4 * parameters_of(self.student)[1]
        parts = [*parts_of(self.student), *learned_parts(self.hidden)]
        learned = 4 * self._learned()
        fixed = [
            ("libraries" if self.device.type == "cpu" else "CUDA", _LIBRARIES[self.device.type]),
            ("student: weights", weights),
            ("student: optimizer", round(state * trained)),
            *((one.name, one.size) for one in self._all_teachers()),
        ]
        if self.options.bf16_weights:
            fixed.insert(2, ("student: bf16 weights", trained // 2))
        if learned:
            fixed.append(("what losses learn, with its optimizer", round((2 + state) * learned)))
        held = sum(size for _, size in fixed)
        rows = self._micro_batch(held)
        taken = self._footprint(rows)
        fixed.insert(2, ("student: gradients", trained))
        passing = [
            (f"activations of {rows} x {self.time} tokens", taken.activations),
            ("scores, logits and losses", taken.chunk),
        ]
        if written := self._writing.cache + self._writing.scores:
            passing.append(("writing: key-value cache and scores", written))
        return Estimate(
            tensors=list(tensors_of(self.student)),
            tree=str(self.student),
            work=self._work(rows),
            parts=parts,
            micro_batch=rows,
            device=self.device.type,
            memory=[*fixed, *passing],
            peak=self._peak(held, taken),
            checkpointed=None if self.options.checkpointing else self._checkpointed(rows),
            checkpoint=round((trained + learned) * (1 + state)),
            final=_saved(finished(self.student, self.stage.student.patches)),
            unknown=self.unknown,
        )

    def _work(self, rows: int) -> Work:
        """Teachers behind a cache are read once, everything else in each step."""
        read, stored = list[Shape](), list[Shape]()
        for component, models in (
            (self.stage.teacher, self.teachers),
            (self.stage.selection, self.references),
        ):
            parts = iter_components(component) if component else ()
            keeps = any(isinstance(one, Teacher) and one.bytes_per_token() for one in parts)
            (stored if keeps else read).extend(shape_of(one.model) for one in models)
        return Work(
            student=shape_of(self.student),
            teachers=read,
            stored=stored,
            micro_batch=rows,
            time=self.time,
            checkpointing=self.options.checkpointing,
            scores=self.stage.selection is not None,
        )

    def _all_teachers(self) -> list[_Teacher]:
        return [*self.teachers, *self.references, *self.writers]

    def _micro_batch(self, held: int) -> int:
        options = self.options
        if options.micro_batch != "auto":
            return min(self.rows, options.micro_batch)
        if self.device.type == "cpu":
            return cpu_default(self.rows, self.stage.data.block)
        memory = torch.cuda.get_device_properties(self.device).total_memory

        def attempt(rows: int) -> None:
            if self._peak(held, self._footprint(rows)) > memory * (1 - MARGIN):
                raise torch.OutOfMemoryError

        try:
            return probe(self.rows, attempt)
        except torch.OutOfMemoryError:
            return 1

    @cached_property
    def _writing(self) -> Writing:
        """Models that may generate: the student, or those of a teacher that a rollout uses."""
        rollout, precision = self.stage.rollout, precision_of(self.options.precision, self.device)
        if rollout is None:
            return Writing()
        asked = self.teachers if call_checked(rollout, "needs_teacher", of=bool) else []
        writers: list[Models] = [[(self.student, HALF.get(precision))]]
        writers += [[(one.model, None) for one in some] for some in (asked, self.writers)]
        try:
            return writing_bytes(self.stage, writers, self.vocabulary)
        except UnsupportedFakeTensorException as error:
            self.unknown.append(f"what writing takes: {error}")
            return Writing()

    def _peak(self, held: int, taken: Footprint) -> int:
        # Rows are generated between steps: without activations, but next to everything that stays.
        # bf16 gradients are still there while they are cast to float32.
        size = 6 if self.options.bf16_weights else 4
        gradients = size * parameters_of(self.student)[1]
        return held + round(max(taken.peak, gradients, self._writing.peak) * _ALLOCATOR)

    def _footprint(self, rows: int) -> Footprint:
        if self.options.checkpointing:
            enable_checkpointing(self.student)
        try:
            with self._working_weights():
                return footprint(
                    self.student,
                    [one.model for one in self.teachers],
                    [one.model for one in self.references],
                    self._pass(rows),
                )
        except (UnsupportedFakeTensorException, PluginError) as error:
            # A loss or model may read values, and fake tensors have none.
            self.unknown.append(f"activations and logits: {error}")
            return Footprint(0, 0, 0)

    def _working_weights(self) -> AbstractContextManager[None]:
        if not self.options.bf16_weights:
            return nullcontext()
        return WorkingWeights([*self.student.parameters()]).in_use()

    def _checkpointed(self, rows: int) -> int | None:
        try:
            enable_checkpointing(self.student)
            with self._working_weights():
                return activations(self.student, self._pass(rows))
        except (ValueError, UnsupportedFakeTensorException):
            return None  # the model does not support it

    def _pass(self, rows: int) -> Pass:
        options = self.options
        chunk = chunk_size(self.vocabulary, self.device)
        return Pass(
            rows=rows,
            time=self.time,
            vocabulary=self.vocabulary,
            chunk=chunk if options.chunk == "auto" else options.chunk,
            losses=self.losses,
            hidden=self.hidden,
            precision=HALF.get(precision_of(options.precision, self.device)),
            selects=self.stage.selection is not None or self._prepares(),
            repeats=rows < self.rows,
        )

    def _prepares(self) -> bool:
        return any(isinstance(loss, BlankPrepared) for loss in self.losses)


def _width(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().hidden_size)


def _fresh(config: PretrainedConfig, dtype: torch.dtype, attention: str | None) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    arguments = {"attn_implementation": attention} if attention else {}
    model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, dtype=dtype, **arguments
    )
    return model


def _bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _saved(model: PreTrainedModel) -> int:
    """The weights in `final/`: only the adapter, if it was not merged."""
    alone = hasattr(model, "get_base_model")
    kept = (p for p in model.parameters() if p.requires_grad or not alone)
    return sum(p.numel() * p.element_size() for p in kept)


def _state_of(options: TrainOptions) -> float:
    """The optimizer's state in numbers per trained parameter, from a step on a small matrix."""
    small = nn.Linear(256, 256, bias=False)
    optimizer = optimizer_of(options, small)
    small(torch.zeros(1, 256)).sum().backward()
    optimizer.step()
    held = (x for state in optimizer.state.values() for x in state.values())
    return sum(x.numel() for x in held if isinstance(x, torch.Tensor)) / small.weight.numel()

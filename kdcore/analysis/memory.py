"""A stage's requirements: parameters, memory and disk. Loads no weights.

Memory is the peak of one process: on the CPU, or on the device if there is one. Memory-mapped
files, such as tokenised data, can be evicted and do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import UnsupportedFakeTensorException

from kdcore.analysis.blank import BlankPrepared, of_single_tokens
from kdcore.analysis.memory_trace import (
    Footprint,
    Pass,
    activations,
    fake_models,
    footprint,
    on_device,
)
from kdcore.analysis.models import (
    TeacherModel,
    bytes_of,
    fresh_model,
    half_copies,
    head_of,
    in_turn,
    optimizer_numbers,
    saved_bytes,
    takes_turns,
    teacher_model,
    width_of,
)
from kdcore.analysis.parameters import (
    Part,
    largest_layer,
    layers_of,
    learned_parts,
    parameters_of,
    parts_of,
)
from kdcore.analysis.processes import (
    ALLOCATOR,
    ModelSize,
    ProcessMemory,
    StepSize,
    StudentSize,
    memory_of,
)
from kdcore.analysis.tensors import Listed, tensors_of
from kdcore.analysis.work import Shape, Work, shape_of
from kdcore.analysis.writing import Models, Writing, writing_bytes
from kdcore.api.component import Component
from kdcore.api.loss import HiddenStatesLoss, Loss
from kdcore.api.options import iter_components
from kdcore.api.teacher import Teacher
from kdcore.errors import PluginError, RunError
from kdcore.guard import call_checked, needs_teacher
from kdcore.models.head import chunk_size
from kdcore.models.loading import HALF, dtype_of, precision_of
from kdcore.objective.hidden_states import compares_states
from kdcore.training.gpu.working_weights import WorkingWeights
from kdcore.training.micro_batch import MARGIN, cpu_default, probe
from kdcore.training.setup import enable_checkpointing
from kdcore.training.student import finished, patched

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from kdcore.api.run import Stage


# Measured: a process before it makes its student; a CUDA context with its kernels.
_LIBRARIES = {"cpu": 590_000_000, "cuda": 600_000_000}

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
    state = optimizer_numbers(stage.train)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    losses = of_single_tokens([term.loss for term in stage.terms if not compares_states(term)])
    with fake_models():
        return _Estimating(stage, config, device, ids, longest, rows, losses).done(state)


def estimate_processes(
    stage: Stage,
    config: PretrainedConfig,
    counts: Sequence[int],
    *,
    ids: int | None,
    longest: int | None,
    rows: int | None = None,
) -> list[ProcessMemory]:
    """Estimate each of so many GPU processes, as `estimate` does one.

    Needs no GPU. Cards are taken to have bf16. With `micro_batch = "auto"` one row is read at once.
    """
    state = optimizer_numbers(stage.train)
    losses = of_single_tokens([term.loss for term in stage.terms if not compares_states(term)])
    device = torch.device("cuda")
    with fake_models():
        found = _Estimating(stage, config, device, ids, longest, rows, losses)
        return [found.process(state, count) for count in counts]


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
        self._traced: dict[tuple[int, bool], Footprint] = {}
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
        ours = width_of(self.student)
        theirs = width_of(self.teachers[0].model) if self.teachers else ours
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
            student = patched(fresh_model(config, dtype, options.attention), options.patches)
        return on_device(student, torch.device("cpu"))

    def _teachers_in(self, component: Component | None) -> list[TeacherModel]:
        found = []
        for one in iter_components(component) if component else ():
            if isinstance(one, Teacher):
                try:
                    config = one.architecture(self.device)
                except RunError as error:
                    self.unknown.append(f"the memory of the teacher {one.name!r}: {error}")
                else:
                    found += [] if config is None else [teacher_model(one.name, config)]
        turns = [o for o in iter_components(component) if takes_turns(o)] if component else []
        return in_turn(found) if turns and self.device.type != "cpu" else found

    def done(self, state: float) -> Estimate:
        """`state` is the optimizer's, in numbers per trained parameter."""
        weights, trained = bytes_of(self.student), 4 * parameters_of(self.student)[1]
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
            final=saved_bytes(finished(self.student, self.stage.student.patches)),
            unknown=self.unknown,
        )

    def process(self, state: float, processes: int) -> ProcessMemory:
        """One of several."""
        trained, share = 4 * parameters_of(self.student)[1], -(-self.rows // processes)
        asked = self.options.micro_batch
        rows = 1 if asked == "auto" else min(share, asked)
        head = cast(nn.Module, self.student.get_output_embeddings())  # type: ignore[no-untyped-call]
        layer, half = largest_layer(self.student), self._precision
        student = StudentSize(
            weights=bytes_of(self.student) + (trained // 2 if self.options.bf16_weights else 0),
            gradients=trained,
            optimizer=round(state * trained),
            head=bytes_of(head),
            head_gradient=4 * parameters_of(head)[1],
            layer=bytes_of(layer, half),
            layer_numbers=parameters_of(layer)[1],
        )
        fixed = _LIBRARIES["cuda"] + round((2 + state) * 4 * self._learned())
        taken = self._footprint(rows, repeats=rows < share)
        step = StepSize(
            taken.peak,
            taken.activations + taken.chunk,
            casts=half_copies(layers_of(self.student), half),
            writing=self._writing.peak,
        )
        teachers = [
            ModelSize(t.size, bytes_of(head_of(t)), bytes_of(largest_layer(t.model)), t.divides)
            for t in self._all_teachers()
        ]
        return memory_of(processes, rows, fixed, student, teachers, step)

    @property
    def _precision(self) -> torch.dtype | None:
        """Of autocast."""
        found = HALF.get(precision_of(self.options.precision, self.device))
        # A card that is only assumed has bf16.
        assumed = self.device.type == "cuda" and not torch.cuda.is_available()
        return torch.bfloat16 if assumed and found is torch.float16 else found

    def _work(self, rows: int) -> Work:
        """Teachers behind a cache are read once, others in each step and evaluation that asks."""
        stage = self.stage
        read, asked, stored = list[Shape](), list[Shape](), list[Shape]()
        members = (stage.teacher, self.teachers, asked), (stage.selection, self.references, read)
        for component, models, live in members:
            parts = iter_components(component) if component else ()
            keeps = any(isinstance(one, Teacher) and one.bytes_per_token() for one in parts)
            (stored if keeps else live).extend(shape_of(one.model) for one in models)
        training = [*(term.loss for term in stage.terms), *filter(None, [stage.selection])]
        return Work(
            student=shape_of(self.student),
            teachers=[*read, *(asked if any(map(needs_teacher, training)) else ())],
            evaluated=asked if any(map(needs_teacher, stage.evals)) else (),
            stored=stored,
            micro_batch=rows,
            time=self.time,
            checkpointing=self.options.checkpointing,
            scores=self.stage.selection is not None,
        )

    def _all_teachers(self) -> list[TeacherModel]:
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
        rollout = self.stage.rollout
        if rollout is None:
            return Writing()
        asked = self.teachers if call_checked(rollout, "needs_teacher", of=bool) else []
        writers: list[Models] = [[(self.student, self._precision)]]
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
        return held + round(max(taken.peak, gradients, self._writing.peak) * ALLOCATOR)

    def _footprint(self, rows: int, *, repeats: bool | None = None) -> Footprint:
        asked = (rows, rows < self.rows if repeats is None else repeats)
        if asked not in self._traced:
            self._traced[asked] = self._trace(*asked)
        return self._traced[asked]

    def _trace(self, rows: int, repeats: bool) -> Footprint:
        if self.options.checkpointing:
            enable_checkpointing(self.student)
        try:
            with self._working_weights():
                return footprint(
                    self.student,
                    [one.model for one in self.teachers],
                    [one.model for one in self.references],
                    self._pass(rows, repeats=repeats),
                )
        except (RuntimeError, PluginError) as error:
            # A loss or model may read values, and fake tensors have none.
            self.unknown.append(f"activations and logits: {str(error).partition(chr(10))[0]}")
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

    def _pass(self, rows: int, *, repeats: bool = False) -> Pass:
        options = self.options
        chunk = chunk_size(self.vocabulary, self.device)
        return Pass(
            rows=rows,
            time=self.time,
            vocabulary=self.vocabulary,
            chunk=chunk if options.chunk == "auto" else options.chunk,
            losses=self.losses,
            hidden=self.hidden,
            precision=self._precision,
            selects=self.stage.selection is not None or self._prepares(),
            repeats=repeats,
        )

    def _prepares(self) -> bool:
        return any(isinstance(loss, BlankPrepared) for loss in self.losses)

"""From a checked stage to a trainer: tokenizer, student, teachers, rows, optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from kdcore.api import Component, Teacher
from kdcore.blame import asked, blame
from kdcore.build import walk
from kdcore.checkpoint import Checkpoints
from kdcore.chunks import chunk_of, values_for
from kdcore.errors import RunError
from kdcore.language_model import LanguageModel
from kdcore.micro_batch import by_probe, on_cpu
from kdcore.objective import Objective
from kdcore.optimizers import make_optimizer
from kdcore.schedule import learning_rate
from kdcore.student import check_length, make_student
from kdcore.suitable import check_positions, numbered, tell_habits, widths_of
from kdcore.train import Trainer
from kdcore.training_rows import training_rows
from kdcore.vocabulary import cut_to, prove

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kdcore.options import TrainOptions
    from kdcore.plugins import Host
    from kdcore.run import Run
    from kdcore.signals import Signals

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def make_accelerator(options: TrainOptions) -> Accelerator:
    """A fresh accelerator in the recipe's precision, whatever ran before in this process."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=False)
    return Accelerator(mixed_precision=precision_of(options.precision))


def precision_of(name: str) -> str:
    """Accelerate's name of the precision that a recipe asks for, on this machine."""
    if name != "auto":
        return {"fp32": "no"}.get(name, name)
    if not torch.cuda.is_available():
        return "no"  # bf16 on a CPU without units for it is ten times slower
    has_units = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_units else "fp16"


def prepare(
    run: Run, host: Host, accelerator: Accelerator, signals: Signals, checkpoints_at: str
) -> Trainer:
    """Load and prove everything; the run has its tokenizer already."""
    stage, options = run.recipe, run.recipe.train
    with accelerator.main_process_first():
        rows = run.laid("train")
    run.steps = steps_of(options, len(rows), rows.lengths)
    student = _prepare_student(run)
    load_teachers(run, stage.components())
    run.chunk = chunk_of(run)
    objective = Objective(run.language_model, run.chunk)
    optimizer = make_optimizer(options, student)
    run.autocast = accelerator.autocast
    run.language_model.precision = HALF.get(accelerator.mixed_precision)
    wrapped, optimizer = accelerator.prepare(objective, optimizer)
    trainer = Trainer(
        run=run,
        host=host,
        accelerator=accelerator,
        objective=objective,
        wrapped=wrapped,
        values=values_for(run),
        optimizer=optimizer,
        rate=learning_rate(options, run.steps),
        rows=training_rows(run),
        checkpoints=Checkpoints(
            run.folder / checkpoints_at, accelerator, student, optimizer, keep=options.save_keep
        ),
        signals=signals,
    )
    run.micro_batch = _micro_batch(trainer)
    return trainer


def _prepare_student(run: Run) -> PreTrainedModel:
    """Make it, and prove it and the ids that it shares with its teachers."""
    stage = run.recipe
    teachers = _teachers(stage.components())
    check_positions(teachers, run.device, stage.data.block)
    student = make_student(
        stage.student,
        run.tokenizer,
        stage.student.patches,
        seed=run.seed,
        device=run.device,
    )
    check_length(student, stage.data.block)
    if stage.train.checkpointing:
        enable_checkpointing(student)
    run.language_model = LanguageModel(student)
    run.vocabulary = prove_vocabulary(run, teachers)
    if stage.train.compile_trunk:
        run.language_model.compile_layers()
    return student


def enable_checkpointing(student: PreTrainedModel) -> None:
    """Make the trunk's activations again in the backward pass instead of keeping them."""
    # The older name goes with transformers 6, and the first releases of 5 have no other.
    newer = getattr(student, "activation_checkpointing_enable", None)
    enable = newer or student.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def steps_of(options: TrainOptions, rows: int, lengths: np.ndarray) -> int:
    """How many optimizer steps the recipe asks for."""
    if options.steps is not None:
        return options.steps
    if options.epochs is None:
        assert options.tokens is not None
        return math.ceil(options.tokens * rows / (int(lengths.sum()) * options.batch))
    taken = math.floor(rows * options.epochs * (1 + 1e-12))  # 0.29 x 100 is 28.999999999999996
    if taken < options.batch:
        instead = f"train.batch={taken}" if taken else "train.steps=1"
        raise RunError(
            f"{options.epochs} epochs of {rows} rows are less than one step of "
            f"{options.batch} rows; type --set {instead}"
        )
    return taken // options.batch


def _teachers(components: Iterable[Component]) -> list[Teacher]:
    return [one for one in components if isinstance(one, Teacher)]


def prove_vocabulary(run: Run, teachers: Sequence[Teacher]) -> int:
    """The ids that the tokenizers of student and teachers agree on, and every head has."""
    return shared_ids(run, teachers, run.language_model.width)


def shared_ids(run: Run, teachers: Sequence[Teacher], width: int) -> int:
    """The same where the student is not loaded, and its head has `width` rows."""
    from transformers import PreTrainedTokenizerBase

    others: dict[str, PreTrainedTokenizerBase] = {}
    for name, teacher in numbered(teachers).items():
        tokenizer = asked(teacher, "tokenizer", of=(PreTrainedTokenizerBase, type(None)))
        if tokenizer is not None:
            others[name] = tokenizer
    shared = prove(run.tokenizer, others)
    tell_habits(run.tokenizer, others)
    widths = {"student": width, **widths_of(teachers, run.device)}
    eos = run.tokenizer.eos_token_id
    return cut_to(shared, widths, eos if isinstance(eos, int) else None)


def load_teachers(run: Run, components: Iterable[Component]) -> None:
    """Load every teacher, nested ones too, but for those that a teacher loads itself if it must."""
    teachers = _teachers(components)
    theirs = {
        id(nested)
        for teacher in teachers
        if teacher.loads_members
        for nested in walk(teacher)
        if nested is not teacher
    }
    for teacher in teachers:
        if id(teacher) not in theirs:
            with blame(teacher, "load"):
                teacher.load(run)


def _micro_batch(trainer: Trainer) -> int:
    run, options = trainer.run, trainer.run.recipe.train
    largest = max(1, math.ceil(options.batch / run.processes))
    if options.micro_batch != "auto":
        return min(largest, options.micro_batch)
    if run.device.type != "cuda":
        return on_cpu(largest, run.recipe.data.block)
    found = by_probe(largest, lambda rows: _attempt(trainer, rows))
    return -int(trainer.gather(torch.tensor([-found], device=run.device))[0].max())


def _attempt(trainer: Trainer, rows: int) -> None:
    """A forward and backward of full rows, beside the memory that the optimizer will take."""
    run = trainer.run
    block = run.recipe.data.block
    trained = sum(p.numel() for p in trainer.objective.parameters() if p.requires_grad)
    moments = torch.empty(2 * trained, device=run.device)
    ids = list(range(block))
    row = {"input_ids": [0] * block, "document": [0] * block, "offset": ids, "position": ids}
    trainer.rehearse([row] * rows)
    del moments

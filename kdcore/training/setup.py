"""Setup, from a checked stage to a trainer: tokenizer, student, teachers, rows, optimizer."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from kdcore.api.teacher import Teacher
from kdcore.data.token_cache import caches
from kdcore.distributed.disks import disk_of, leaders_first
from kdcore.errors import RunError, UsageError
from kdcore.guard import call_checked
from kdcore.models.causal_lm import LanguageModel
from kdcore.models.loading import HALF, precision_of
from kdcore.models.vocabulary import cut_to, verify_same_ids, warn_tokenizer_mismatch
from kdcore.objective.columns import check_columns
from kdcore.objective.hidden_states import HiddenTerms
from kdcore.objective.losses import warn_untempered
from kdcore.objective.objective import Objective
from kdcore.objective.teachers import (
    check_positions,
    head_sizes,
    load_teachers,
    numbered,
    reading_our_ids,
)
from kdcore.optim import learning_rate, make_optimizer
from kdcore.sharding.layout import Layout, layout_of
from kdcore.training.checkpoints.saving import Checkpoints
from kdcore.training.gpu.graphs import TrunkGraphs, check_graphs
from kdcore.training.gpu.working_weights import WorkingWeights, check_working_weights
from kdcore.training.micro_batch import chunk_of, micro_batch_of, per_token_for, values_for
from kdcore.training.rollout_rows import RolloutRows, WrittenAhead
from kdcore.training.run_state import training_rows
from kdcore.training.student import check_balance, check_length, checked_config, make_student
from kdcore.training.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from accelerate import Accelerator
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kdcore.api.train_options import TrainOptions
    from kdcore.data.sampler import StreamedRows, TrainingRows
    from kdcore.plugin.manager import PluginManager
    from kdcore.training.run_state import RunState
    from kdcore.training.signals import Signals

_log = logging.getLogger("kdcore")


def make_accelerator(options: TrainOptions) -> Accelerator:
    """A fresh accelerator in the recipe's precision, unaffected by earlier runs in the process."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    _refuse_old_torch(OLDEST_TORCH, "kdcore")
    # The Metal device (MPS) of a Mac has no float64, which schedules and sums of losses need.
    metal = torch.backends.mps.is_available()

    def fresh(precision: str) -> Accelerator:
        AcceleratorState._reset_state(reset_partial_state=False)
        return Accelerator(mixed_precision=precision, cpu=metal)

    if metal:
        _log.info("device: the CPU, since kdcore does not support MPS, Apple's GPU")

    # Only accelerate knows which device it will take, and with it what "auto" means.
    accelerator = fresh(precision_of(options.precision, fresh("no").device))
    check_shards(options, accelerator.num_processes)
    return accelerator


def prepare(
    run: RunState,
    host: PluginManager,
    accelerator: Accelerator,
    signals: Signals,
    checkpoints_at: str,
) -> Trainer:
    """Load and verify everything; the run already has its tokenizer."""
    options = run.recipe.train
    _check_configs(run, accelerator)
    with leaders_first(accelerator, disk_of(accelerator, caches())):
        lengths = run.laid("train").lengths
    run.steps = steps_of(options, run.drawn_in_epoch(), lengths)
    hidden = HiddenTerms(run.recipe.terms)
    layout = _layout(run, accelerator)
    student = _prepare_student(run, HALF.get(accelerator.mixed_precision), hidden, layout)
    _prepare_losses(run, hidden)
    scaled = run.processes > 1 or accelerator.scaler is not None
    objective = Objective(run.language_model, run.chunk, hidden, scaled=scaled)
    run.autocast = accelerator.autocast
    layout.rest()
    optimizer = optimizer_of(options, student, objective.learned, sharded=layout.sharded)
    wrapped, optimizer = layout.prepare(objective, optimizer)
    rows = rows_of(run)
    trainer = Trainer(
        run=run,
        host=host,
        accelerator=accelerator,
        objective=objective,
        layout=layout,
        wrapped=wrapped,
        values=values_for(run),
        optimizer=optimizer,
        rate=rate_of(options, run.steps),
        rows=rows,
        working=WorkingWeights([*student.parameters()]) if options.bf16_weights else None,
        checkpoints=_checkpoints(
            run, run.folder / checkpoints_at, layout, accelerator, student, optimizer, rows
        ),
        signals=signals,
    )
    run.micro_batch = micro_batch_of(trainer)
    run.compiled = per_token_for(run)
    if options.cuda_graphs:  # after all memory was tried out
        run.language_model.replayed = TrunkGraphs([*student.parameters()])
    return trainer


def _check_configs(run: RunState, accelerator: Accelerator) -> None:
    """Before data: a wrong name is found before hours of tokenising."""
    stage = run.recipe
    check_working_weights(stage.train, accelerator)
    check_graphs(stage.train, accelerator)
    checked_config(stage.student, run.tokenizer)
    check_positions(reading_our_ids(stage.components()), run.device, stage.data.block)


def _prepare_losses(run: RunState, hidden: HiddenTerms) -> None:
    """Load the teachers, and verify what losses need of them and of the data."""
    stage = run.recipe
    check_columns(run)
    load_teachers(run, stage.components())
    warn_untempered(stage.teacher, [term.loss for term in stage.terms])
    run.chunk = chunk_of(run)
    hidden.prepare(run)


def _layout(run: RunState, accelerator: Accelerator) -> Layout:
    layout = layout_of(accelerator, run.recipe.train.shard)
    if run.recipe.train.shard == "full" and not layout.sharded:
        run.say('train.shard = "full" divides nothing in one process; --processes N starts N')
    return layout


def rows_of(run: RunState) -> TrainingRows | StreamedRows | RolloutRows:
    """This process's rows of each step. With a rollout, every process draws all rows."""
    if run.recipe.rollout is None:
        return training_rows(run)
    return RolloutRows(run, training_rows(run, whole=True))


def _checkpoints(
    run: RunState,
    folder: Path,
    layout: Layout,
    accelerator: Accelerator,
    student: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    rows: object,
) -> Checkpoints:
    if layout.sharded and not run.disk.is_shared:
        raise UsageError(
            'train.shard = "full" needs run folders on a disk that all nodes share: every process '
            "writes a part of each checkpoint; name one with --out, or drop train.shard"
        )
    return Checkpoints(
        folder,
        *(accelerator, student, optimizer),
        keep=run.recipe.train.save_keep,
        disk=run.disk,
        layout=layout,
        components={**run.recipe.by_place(), **_written(rows)},
    )


def _written(rows: object) -> dict[str, WrittenAhead]:
    return {"written": WrittenAhead(rows)} if isinstance(rows, RolloutRows) else {}


def _prepare_student(
    run: RunState, precision: torch.dtype | None, hidden: HiddenTerms, layout: Layout
) -> PreTrainedModel:
    """Make the student; verify it, and the ids that it shares with its teachers."""
    stage = run.recipe
    teachers = reading_our_ids(stage.components())
    student = make_student(
        stage.student,
        run.tokenizer,
        stage.student.patches,
        seed=run.seed,
        device=layout.place(),
    )
    check_length(student, stage.data.block)
    check_balance(student.config, stage.student)  # a patch may have changed it
    if stage.train.checkpointing:
        enable_checkpointing(student)
    layout.lay(student, precision)
    run.language_model = LanguageModel(student, precision)
    run.language_model.check_length(stage.data.block)
    run.vocabulary = prove_vocabulary(run, teachers)
    hidden.watch(run.language_model)
    if stage.train.compile_trunk:
        run.language_model.compile_layers()
    return student


def enable_checkpointing(student: PreTrainedModel) -> None:
    """Recompute the trunk's activations in the backward pass instead of storing them."""
    # transformers 6 drops the older name, and the first releases of 5 have no other.
    newer = getattr(student, "activation_checkpointing_enable", None)
    enable = newer or student.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def steps_of(options: TrainOptions, count: int, lengths: np.ndarray) -> int:
    """The number of optimizer steps that the recipe asks for.

    `count` is the number of rows in an epoch, or of documents where steps draw these; `lengths` are
    those of its rows.
    """
    if options.steps is not None:
        return options.steps
    if options.epochs is None:
        assert options.tokens is not None
        return math.ceil(options.tokens * count / (int(lengths.sum()) * options.drawn))
    taken = math.floor(count * options.epochs * (1 + 1e-12))  # 0.29 * 100 is 28.999999999999996
    if taken < options.drawn:
        unit = options.drawn_unit
        key = "batch_documents" if unit == "documents" else "batch"
        instead = f"train.{key}={taken}" if taken else "train.steps=1"
        raise RunError(
            f"{options.epochs} epochs of {count} {unit} are less than one step of "
            f"{options.drawn} {unit}; type --set {instead}"
        )
    return taken // options.drawn


def prove_vocabulary(run: RunState, teachers: Sequence[Teacher]) -> int:
    """The ids on which the tokenizers of student and teachers agree, and which every head has."""
    return shared_ids(run, teachers, run.language_model.width)


def shared_ids(run: RunState, teachers: Sequence[Teacher], width: int) -> int:
    """The same before the student is loaded; its head has `width` rows."""
    from transformers import PreTrainedTokenizerBase

    others: dict[str, PreTrainedTokenizerBase] = {}
    for name, teacher in numbered(teachers).items():
        tokenizer = call_checked(teacher, "tokenizer", of=(PreTrainedTokenizerBase, type(None)))
        if tokenizer is not None:
            others[name] = tokenizer
    shared = verify_same_ids(run.tokenizer, others)
    warn_tokenizer_mismatch(run.tokenizer, others)
    widths = {"student": width, **head_sizes(teachers, run.device)}
    eos = run.tokenizer.eos_token_id
    return cut_to(shared, widths, eos if isinstance(eos, int) else None)


def optimizer_of(
    options: TrainOptions,
    model: nn.Module,
    learned: nn.Module | None = None,
    *,
    sharded: bool = False,
) -> torch.optim.Optimizer:
    """The optimizer of `[train]` over the trained parameters; no weight decay for `learned`."""
    optimizer = make_optimizer(
        options.optimizer,
        model,
        lr=options.lr,
        weight_decay=options.weight_decay,
        betas=options.betas,
        eps=options.eps,
        sharded=sharded,
    )
    if more := list(learned.parameters()) if learned is not None else []:
        optimizer.add_param_group({"params": more, "weight_decay": 0.0})
    return optimizer


def rate_of(options: TrainOptions, steps: int) -> Callable[[int], float]:
    """The learning rate of `[train]` by step, from 1."""
    if options.warmup and options.schedule == "constant":
        _log.warning(
            'schedule = "constant" has no warm-up, so train.warmup has no effect; type '
            "--set train.schedule=constant_with_warmup"
        )
    return learning_rate(
        options.lr, options.schedule, steps, warmup=options.warmup, min_lr=options.min_lr
    )


OLDEST_TORCH = (2, 8)
"""The first with products of halves in float32 that are added up."""


OLDEST_TO_SHARD = (2, 9)
"""The first that writes each process's parts of a tensor as safetensors."""


def check_shards(options: TrainOptions, processes: int) -> None:
    """Raise UsageError where this torch cannot save a sharded student."""
    if options.shard == "full" and processes > 1:
        _refuse_old_torch(OLDEST_TO_SHARD, 'train.shard = "full"')


def _refuse_old_torch(oldest: tuple[int, int], who: str) -> None:
    """Raise UsageError for a torch that was installed against the requirements."""
    found = tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])
    if found < oldest:
        wanted = ".".join(map(str, oldest))
        raise UsageError(
            f"torch {torch.__version__} is too old: {who} needs {wanted} or later; type "
            f'pip install --upgrade "torch>={wanted}"'
        )

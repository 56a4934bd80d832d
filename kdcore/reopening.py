"""A run as it was, or another model in a recipe's place: to measure and to look at, not to train.

Nothing here writes into a run folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kdcore.adapters import adapter_base
from kdcore.api import Component, Teacher
from kdcore.build import walk
from kdcore.checkpoint import damage, in_order, load_weights, newest
from kdcore.errors import UsageError
from kdcore.folders import CHECKPOINTS, FINAL, choose_folder, finished
from kdcore.formula import objective_formula
from kdcore.hub import dtype_of, load_config, load_model, load_tokenizer
from kdcore.language_model import LanguageModel
from kdcore.micro_batch import on_cpu
from kdcore.recipe import read_recipe
from kdcore.rules import needs_teacher
from kdcore.run import Run
from kdcore.setup import HALF, make_accelerator, precision_of, prove_vocabulary, steps_of
from kdcore.student import make_student
from kdcore.teachers import load_teacher
from kdcore.trust import trust

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kdcore.plugins import Host
    from kdcore.recipe import Recipe, Stage


def open_run(
    folder: Path,
    host: Host,
    *,
    step: int | None = None,
    sets: Sequence[str] = (),
    evals: Sequence[str] | None = None,
) -> Run:
    """A run with its tokenizer, rows and weights, in evaluation mode.

    The weights are the finished student's, or those of the checkpoint of `step` (of an unfinished
    run by default the newest). `evals` are the ones of the run's recipe that are left, by name;
    one that it does not have is added with its defaults, and `sets` may change its options. The
    teacher is loaded if one of them asks for it.
    """
    trust(())  # a folder's recipe may be a stranger's
    recipe = read_recipe(str(folder / "resolved.toml"), host, sets=sets, evals=evals or ())
    (table,) = recipe.stages
    stage = _with_evals(recipe.build(table.name), evals)
    done = step is None and finished(folder)
    checkpoint = _newest(folder, needed=not done) if step is None else _of_step(folder, step)
    run = _run(stage, folder, _state(checkpoint))
    run.tokenizer = load_tokenizer(str(folder / "tokenizer"))
    if done:
        run.steps = run.steps or _steps(run)
        run.step = run.steps
        student = _as_saved(str(folder / FINAL), stage, run.device)
    else:
        student = make_student(
            stage.student,
            run.tokenizer,
            stage.student.patches,
            seed=stage.seed,
            device=run.device,
        )
        assert checkpoint is not None
        load_weights(checkpoint, student)
    return _ready(run, student, stage.components())


def open_model(model: str, stage: Stage, folder: Path, evals: Sequence[str] | None = None) -> Run:
    """A model from a folder or the hub in the place of a stage's student, as `open_run` has it.

    It reads with its own tokenizer. `folder` is where its run would be; it is not made.
    """
    trust(())
    stage = _with_evals(stage, evals)
    run = _run(stage, folder, {})
    run.tokenizer = load_tokenizer(model)
    read = [stage.teacher] if stage.teacher is not None and _asks_teacher(stage) else []
    others = [nested for teacher in read for nested in walk(teacher)]
    return _ready(run, _as_saved(model, stage, run.device), others)


def finals_of(recipe: Recipe, stage: str, out: Path) -> dict[str, Path]:
    """Where the final weights of the stages that a stage names are, or would be, in `out`."""
    (needs,) = (each.needs for each in recipe.stages if each.name == stage)
    return {need: folder_of(recipe, need, out) / FINAL for need in needs}


def folder_of(recipe: Recipe, stage: str, out: Path) -> Path:
    """The folder of a stage's run, which may not be there."""
    return choose_folder(out, recipe.run_name(stage), recipe.identity(stage), fresh=False)


def _with_evals(stage: Stage, names: Sequence[str] | None) -> Stage:
    """The stage with the evals of these names only."""
    kept = [one for one in stage.evals if names is None or one.name in names]
    return replace(stage, evals=kept)


def _newest(folder: Path, *, needed: bool) -> Path | None:
    found = newest(folder / CHECKPOINTS)
    if found is None and needed:
        raise UsageError(f"{folder} has no checkpoint yet: kdcore run {folder} goes on")
    return found


def _of_step(folder: Path, step: int) -> Path:
    kept = {int(path.name[5:]): path for path in in_order(folder / CHECKPOINTS)}
    if step not in kept:
        there = f"those of {', '.join(map(str, kept))}" if kept else "none"
        raise UsageError(f"{folder} has no checkpoint of step {step}; it has {there}")
    if fault := damage(kept[step]):
        raise UsageError(f"the checkpoint {kept[step]} is damaged ({fault})")
    return kept[step]


def _state(checkpoint: Path | None) -> dict[str, Any]:
    if checkpoint is None:
        return {}
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
    return state


def _run(stage: Stage, folder: Path, state: Mapping[str, Any]) -> Run:
    accelerator = make_accelerator(stage.train)
    known = ("step", "steps", "tokens", "vocabulary")
    return Run(
        recipe=stage,
        folder=folder,
        device=accelerator.device,
        objective=objective_formula(
            stage.terms, selects=stage.selection is not None, teacher=stage.teacher
        ),
        autocast=accelerator.autocast,
        micro_batch=_micro_batch(stage, accelerator.device, state),
        **{key: state[key] for key in known if key in state},
    )


def _micro_batch(stage: Stage, device: torch.device, state: Mapping[str, Any]) -> int:
    """As the recipe or the run's checkpoint says; else small, and on a CPU as a run has it."""
    options = stage.train
    if options.micro_batch != "auto":
        return min(options.batch, options.micro_batch)
    if "micro_batch" in state:
        return int(state["micro_batch"])
    largest = options.batch if device.type == "cpu" else min(options.batch, Run.micro_batch)
    return on_cpu(largest, stage.data.block)


def _steps(run: Run) -> int:
    """How many steps a run took whose checkpoints are gone."""
    options = run.recipe.train
    if options.steps is not None:
        return options.steps
    rows = run.laid("train")
    return steps_of(options, len(rows), rows.lengths)


def _as_saved(name: str, stage: Stage, device: torch.device) -> PreTrainedModel:
    """A model in the type that its weights are kept in; an adapter on its base as in the run."""
    kept = None if adapter_base(name) else load_config(name).dtype
    dtype = kept if isinstance(kept, torch.dtype) else dtype_of(stage.student.dtype, device)
    return load_model(name, dtype=dtype, device=device, attention=stage.student.attention)


def _asks_teacher(stage: Stage) -> bool:
    return any(needs_teacher(one) for one in stage.evals)


def _ready(run: Run, student: PreTrainedModel, components: Sequence[Component]) -> Run:
    """The student proved, the ids agreed on, and the teacher loaded if an eval asks for it."""
    stage = run.recipe
    student.eval().requires_grad_(False)  # type: ignore[no-untyped-call]
    run.language_model = LanguageModel(student)
    run.language_model.precision = HALF.get(precision_of(stage.train.precision))
    if not run.vocabulary:
        teachers = [one for one in components if isinstance(one, Teacher)]
        run.vocabulary = prove_vocabulary(run, teachers)
    if run.teacher is not None and _asks_teacher(stage):
        load_teacher(run, run.teacher)
    return run

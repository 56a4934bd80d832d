"""Opening a run, a model or a stage, to the level that the caller needs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import tomli
import torch

from kdcore.api.data import Data
from kdcore.api.observers import Eval
from kdcore.api.options import iter_components, schedules_in
from kdcore.api.run import Run, Stage
from kdcore.api.student import StudentOptions
from kdcore.api.teacher import Teacher
from kdcore.api.train_options import TrainOptions
from kdcore.data.collate import Collate
from kdcore.distributed.disks import SHARED, Disk
from kdcore.errors import Diagnostic, RecipeError, UsageError
from kdcore.guard import call_checked_list, needs_teacher
from kdcore.models.adapters import adapter_base
from kdcore.models.causal_lm import LanguageModel
from kdcore.models.loading import (
    HALF,
    dtype_of,
    load_config,
    load_model,
    load_tokenizer,
    precision_of,
)
from kdcore.models.locations import set_trusted
from kdcore.objective.teachers import load_teacher, reading_our_ids
from kdcore.recipe.build import Builder
from kdcore.recipe.describe import objective_formula
from kdcore.recipe.node import Node, Source
from kdcore.recipe.overrides import Overrides, add_to_list
from kdcore.recipe.recipe import read_recipe
from kdcore.runs.artifacts import load_tokenizer_of
from kdcore.runs.begun import as_begun
from kdcore.runs.folder import CHECKPOINTS, FINAL, RESOLVED, TOKENIZER, choose_folder, finished
from kdcore.training.checkpoints.folders import damage, in_order, newest, of_final
from kdcore.training.checkpoints.saving import load_weights
from kdcore.training.micro_batch import cpu_default
from kdcore.training.run_state import RunState
from kdcore.training.setup import make_accelerator, prove_vocabulary, shared_ids, steps_of
from kdcore.training.student import make_student, student_config

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kdcore.data.batch import Batch, Row, Rows
    from kdcore.data.rows import RowDataset
    from kdcore.plugin.manager import PluginManager
    from kdcore.recipe.recipe import Recipe


Upto = Literal["tokenizer", "ids", "weights"]


@dataclass(frozen=True, eq=False)
class OpenRequest:
    """A stage, with its run folder, tokenizer and weights."""

    stage: Stage
    folder: Path  # of the run, which may not exist
    trusted: Sequence[str] = ()  # models whose remote code may run, whatever the run's recipe says
    others: Sequence[Path] = ()  # other run folders that may have its tokenizer
    tokenizer: str | None = None  # path of a saved one; None: the run's own, made if necessary
    weights: str | None = None  # path of a saved model
    finished: bool = False  # `weights` are the run's final ones
    checkpoint: Path | None = None  # of the run; used if `weights` is None
    state: Mapping[str, Any] = field(default_factory=dict)  # run state in the checkpoint
    accelerator: Accelerator | None = None  # None: make one if a device is used
    disk: Disk = SHARED  # of `folder`

    @property
    def teachers(self) -> list[Teacher]:
        """The teachers whose ids count: all of a run; for another model, that of its evals."""
        stage = self.stage
        if self.weights is None or self.finished:
            return reading_our_ids(stage.components())
        asked = stage.teacher if stage.teacher is not None and _asks_teacher(stage) else None
        return [] if asked is None else reading_our_ids(iter_components(asked))


def open_stage(request: OpenRequest, *, upto: Upto = "weights") -> RunState:
    """Open a stage to a level.

    "tokenizer": rows can be made; on the CPU without an accelerator. "ids": on its device, with the
    ids shared by student and teachers, by their configs. "weights": the student is loaded and
    verified, in evaluation mode, and the teacher if an eval needs it.
    """
    set_trusted(request.trusted)
    accelerator = request.accelerator
    if accelerator is None and upto != "tokenizer":
        accelerator = make_accelerator(request.stage.train)
    run = _begin(request, accelerator)
    run.tokenizer = _tokenizer(run, request)
    if upto == "ids":
        config = student_config(run.recipe.student, run.tokenizer)
        run.vocabulary = shared_ids(run, request.teachers, config.get_text_config().vocab_size)
        run.micro_batch = cpu_default(run.batch, run.data.block)
    elif upto == "weights":
        _load(run, request)
    return run


def begun(
    folder: Path,
    host: PluginManager,
    *,
    step: int | None = None,
    sets: Sequence[str] = (),
    evals: Sequence[str] | None = None,
) -> OpenRequest:
    """A run by its folder, read-only.

    The weights are the final ones, or those of the checkpoint at `step` (by default the newest of
    an unfinished run). `evals` names the evals to keep; one that the recipe lacks is added with its
    defaults, and `sets` may change its options.
    """
    path = folder / RESOLVED
    recipe = read_recipe(str(path), host, sets=_of_its_stage(path, sets), evals=evals or ())
    (table,) = recipe.stages
    done = step is None and finished(folder)
    if done:
        checkpoint = of_final(folder / CHECKPOINTS)
    else:
        checkpoint = _newest(folder) if step is None else _of_step(folder, step)
    state = {} if checkpoint is None else json.loads((checkpoint / "state.json").read_text())
    if sets:  # its scores belong to another recipe
        state.pop("scores", None)
    return OpenRequest(
        as_begun(_with_evals(recipe.build(table.name), evals), folder),
        folder,
        tokenizer=str(folder / TOKENIZER),
        weights=str(folder / FINAL) if done else None,
        finished=done,
        checkpoint=checkpoint,
        state=state,
    )


def _of_its_stage(resolved: Path, sets: Sequence[str]) -> Sequence[str]:
    """With the stage's name before keys of its own table, which win over those at the top."""
    tables = tomli.loads(resolved.read_text()).get("stage") if sets else None
    if not tables:
        return sets
    ((name, own),) = tables.items()
    keys = [each.partition("=")[0].split(".")[0].strip() for each in sets]
    return [
        f"stage.{name}.{each}" if key in own else each for key, each in zip(keys, sets, strict=True)
    ]


def in_students_place(
    model: str, stage: Stage, folder: Path, evals: Sequence[str] | None = None
) -> OpenRequest:
    """A model with its own tokenizer as a stage's student; `folder` is not created."""
    return OpenRequest(_with_evals(stage, evals), folder, tokenizer=model, weights=model)


@contextmanager
def not_begun(recipe: Recipe, name: str, out: Path) -> Iterator[OpenRequest]:
    """A stage in a temporary folder. Stages that it refers to must be finished in `out`."""
    finals = stage_outputs(recipe, name, out)
    for need, final in finals.items():
        if not finished(final.parent):
            raise UsageError(
                f"the stage {need!r} is not finished in {out}: kdcore run {recipe.name} "
                f"--stage {need} comes first"
            )
    stage = recipe.build(name, finals)
    known = [run_folder(recipe, name, out), *(final.parent for final in finals.values())]
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".unstarted-", dir=out) as folder:
        yield OpenRequest(stage, Path(folder), trusted=stage.trusted, others=known)


def stage_outputs(recipe: Recipe, stage: str, out: Path) -> dict[str, Path]:
    """The final weights of the stages that a stage refers to, in `out`, existing or not."""
    (needs,) = (each.needs for each in recipe.stages if each.name == stage)
    return {need: run_folder(recipe, need, out) / FINAL for need in needs}


def run_folder(recipe: Recipe, stage: str, out: Path) -> Path:
    """The folder of a stage's run, which may not exist."""
    return choose_folder(out, recipe.run_name(stage), recipe.identity(stage), fresh=False)


def _with_evals(stage: Stage, names: Sequence[str] | None) -> Stage:
    """The stage with only these evals."""
    kept = [one for one in stage.evals if names is None or one.name in names]
    return replace(stage, evals=kept)


def _newest(folder: Path) -> Path:
    found = newest(folder / CHECKPOINTS)
    if found is None:
        raise UsageError(f"{folder} has no checkpoint yet: type kdcore run {folder} to resume it")
    return found


def _of_step(folder: Path, step: int) -> Path:
    kept = {int(path.name[5:]): path for path in in_order(folder / CHECKPOINTS)}
    if step not in kept:
        there = f"those of {', '.join(map(str, kept))}" if kept else "none"
        raise UsageError(f"{folder} has no checkpoint of step {step}; it has {there}")
    if problem := damage(kept[step]):
        raise UsageError(f"the checkpoint {kept[step]} is damaged ({problem})")
    return kept[step]


def _begin(request: OpenRequest, accelerator: Accelerator | None) -> RunState:
    stage, state = request.stage, request.state
    run = RunState(
        recipe=stage,
        folder=request.folder,
        disk=request.disk,
        device=torch.device("cpu") if accelerator is None else accelerator.device,
        objective=objective_formula(
            stage.terms, selects=stage.selection is not None, teacher=stage.teacher
        ),
        **{key: state[key] for key in ("step", "steps", "tokens", "vocabulary") if key in state},
    )
    run.micro_batch = _micro_batch(stage, run.device, state)
    run.scores = state.get("scores", {})
    if accelerator is not None:
        run.autocast = accelerator.autocast
        run.process, run.processes = accelerator.process_index, accelerator.num_processes
    return run


def _tokenizer(run: RunState, request: OpenRequest) -> PreTrainedTokenizerBase:
    if request.tokenizer is not None:
        return load_tokenizer(request.tokenizer)
    return load_tokenizer_of(run, request.others, request.accelerator)


def _micro_batch(stage: Stage, device: torch.device, state: Mapping[str, Any]) -> int:
    """By the recipe or the run's checkpoint; else small, and on a CPU as in a run."""
    options = stage.train
    if options.micro_batch != "auto":
        return min(options.drawn, options.micro_batch)
    if "micro_batch" in state:
        return int(state["micro_batch"])
    largest = options.drawn if device.type == "cpu" else min(options.drawn, RunState.micro_batch)
    return cpu_default(largest, stage.data.block)


def _steps(run: RunState) -> int:
    """The number of steps of a run whose checkpoints are gone."""
    options = run.recipe.train
    if options.steps is not None:
        return options.steps
    return steps_of(options, run.drawn_in_epoch(), run.laid("train").lengths)


def _as_saved(name: str, stage: Stage, device: torch.device) -> PreTrainedModel:
    """A model in the dtype of its saved weights; an adapter on its base, as in the run."""
    kept = None if adapter_base(name) else load_config(name).dtype
    dtype = kept if isinstance(kept, torch.dtype) else dtype_of(stage.student.dtype, device)
    return load_model(name, dtype=dtype, device=device, attention=stage.student.attention)


def _asks_teacher(stage: Stage) -> bool:
    return any(needs_teacher(one) for one in stage.evals)


def _load(run: RunState, request: OpenRequest) -> None:
    """Load and verify the student, agree on ids, and load the teacher if an eval needs it."""
    stage = request.stage
    if request.finished:
        run.steps = run.steps or _steps(run)
        run.step = run.steps
    if request.weights is not None:
        student = _as_saved(request.weights, stage, run.device)
    else:
        student = make_student(
            stage.student,
            run.tokenizer,
            stage.student.patches,
            seed=stage.seed,
            device=run.device,
        )
        if request.checkpoint is not None:  # otherwise as the run would start
            load_weights(request.checkpoint, student)
    student.eval().requires_grad_(False)  # type: ignore[no-untyped-call]
    precision = HALF.get(precision_of(stage.train.precision, run.device))
    run.language_model = LanguageModel(student, precision)
    if not run.vocabulary:
        run.vocabulary = prove_vocabulary(run, request.teachers)
    for schedule in schedules_in(stage.components()) if run.steps else ():
        schedule.move(run.step / run.steps)
    run.reads_teacher = run.teacher is not None and _asks_teacher(stage)
    if run.teacher is not None and run.reads_teacher:
        load_teacher(run, run.teacher)


def iter_batches(run: Run, rows: Sequence[Row]) -> Iterator[Batch]:
    """Rows in order, one micro-batch at a time."""
    dataset: RowDataset = rows  # type: ignore[assignment]  # as the run has them
    collate = Collate(dataset.split, run.vocabulary, run.device)
    for start in range(0, len(dataset), run.micro_batch):
        indices = range(start, min(start + run.micro_batch, len(dataset)))
        yield collate([dataset[n] for n in indices])


class NoData(Data):
    """Data of a request that does not say what to read."""

    name = "none"

    def texts(self, split: str) -> Iterable[str]:
        """No texts."""
        raise UsageError("no recipe names a text to measure on; give one with --recipe")

    def make_rows(
        self, split: str, tokenizer: PreTrainedTokenizerBase, *, seed: int, epoch: int
    ) -> Rows:
        """No rows."""
        raise UsageError("no recipe names a text to measure on; give one with --recipe")


def eval_stage(
    model: str, evals: Sequence[str], host: PluginManager, sets: Sequence[str] = ()
) -> Stage:
    """A stage with a model as its student and these evals, with defaults except for `sets`.

    Evals that need rows or a teacher raise an error that asks for a recipe.
    """
    # Required options; nothing is trained.
    plain = {"student": {"model": model}, "train": {"lr": 1.0, "steps": 1}}
    root, errors = Node.of(plain, Source("the command line")), list[Diagnostic]()
    for name in evals:
        add_to_list(root, "eval", name, "--use")
    Overrides(root, host, errors, []).apply(sets)
    errors += [
        value.error(f"without a recipe there is no {key} to set", "give one with --recipe")
        for key, value in root.table.items()
        if key not in ("student", "train", "eval")
    ]
    stage = None if errors else _built(root, host, errors)
    if stage is None:
        raise RecipeError(errors)
    return stage


def _built(root: Node, host: PluginManager, errors: list[Diagnostic]) -> Stage | None:
    builder, data = Builder(host, errors), NoData()
    student = builder.options(StudentOptions, root.table["student"], "[student]")
    train = builder.options(TrainOptions, root.table["train"], "[train]")
    made = [builder.component("eval", table) for table in root.table["eval"].items]
    if student is None or train is None or errors:
        return None
    stage = Stage(
        name="",
        run_name="eval",
        table=root.plain_table(),
        seed=0,
        student=student,
        tokenizer=None,
        tokenizer_data=data,
        data=data,
        teacher=None,
        terms=[],
        selection=None,
        scope="step",
        evals=[one for one in made if isinstance(one, Eval)],
        loggers=[],
        train=train,
    )
    for component, table in builder.places:
        if isinstance(component, Eval) and needs_teacher(component):
            said = f"{component.name!r} needs a teacher, and no recipe says which"
            errors.append(table.error(said, "give one with --recipe"))
        errors += [table.error(said) for said in call_checked_list(component, "faults", stage)]
    return None if errors else stage

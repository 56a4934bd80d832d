"""The stages of a recipe, one after another: used again if finished, continued if begun."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from kdcore.blame import asked
from kdcore.checkpoint import sums_of
from kdcore.confidential import without_own_secrets
from kdcore.environment import record
from kdcore.errors import KdcoreError, PluginError, RunError, UsageError
from kdcore.extending import extended, take_over
from kdcore.final import finish_student, save_final
from kdcore.fingerprints import of_tokenizer
from kdcore.folders import (
    CHECKPOINTS,
    FINAL,
    choose_folder,
    compare_fingerprints,
    finished,
    keep_texts,
    locked,
)
from kdcore.formula import objective_formula
from kdcore.full_disk import full_disk, is_full
from kdcore.micro_batch import kept_micro_batch
from kdcore.run import Run
from kdcore.setup import make_accelerator, prepare
from kdcore.signals import Signals
from kdcore.tokenizing import load_tokenizer_of
from kdcore.trust import trust

if TYPE_CHECKING:
    from accelerate import Accelerator

    from kdcore.plugins import Host
    from kdcore.recipe import Recipe, Stage
    from kdcore.train import Trainer

_log = logging.getLogger("kdcore")
_VERSIONS = ("torch", "transformers", "kdcore")  # what a result depends on


@dataclass(frozen=True)
class Options:
    """What `kdcore run` was asked for, besides the recipe."""

    out: Path
    fresh: bool = False
    accept: frozenset[str] = frozenset()
    only: str | None = None  # one stage, and those that it needs
    folder: Path | None = None  # the run to go on with, whatever its recipe's identity


def run_recipe(recipe: Recipe, host: Host, options: Options) -> list[Path]:
    """Run every stage that is not finished; returns each stage's folder."""
    done: dict[str, Path] = {}
    for name in wanted_stages(recipe, options.only):
        finals = {stage: folder / FINAL for stage, folder in done.items()}
        stage = recipe.build(name, finals)
        accelerator = make_accelerator(stage.train)
        fresh = options.fresh and options.only in (None, name)
        texts = {"recipe.toml": recipe.text, "resolved.toml": recipe.resolved(name, finals)}
        going_on = None if fresh else _going_on(stage, texts["resolved.toml"], host, options)
        folder = going_on or choose_folder(
            options.out, stage.run_name, recipe.identity(name), fresh=fresh
        )
        if going_on is not None and accelerator.is_main_process:
            take_over(folder, texts["resolved.toml"], host, options.accept)
        folder = _agreed(accelerator, folder)
        if finished(folder):
            _log.info("%s is finished: %s is used", stage.run_name, folder)
        else:
            _run_stage(stage, folder, accelerator, host, texts, list(done.values()), options)
        done[name] = folder
    return list(done.values())


def _going_on(stage: Stage, resolved: str, host: Host, options: Options) -> Path | None:
    """The folder that is meant by its name, or by what is accepted of its recipe."""
    name = stage.run_name
    return options.folder or extended(options.out, name, resolved, host, options.accept)


def wanted_stages(recipe: Recipe, only: str | None) -> list[str]:
    """The stages to run, in order: all, or one with what it needs."""
    by_name = {stage.name: stage for stage in recipe.stages}
    if only is None:
        return list(by_name)
    if only not in by_name:
        raise UsageError(f"recipe {recipe.name!r} has no stage {only!r}: {', '.join(by_name)}")
    wanted, asked = set(), [only]
    while asked:
        wanted.add(name := asked.pop())
        asked += by_name[name].needs
    return [name for name in by_name if name in wanted]


def _agreed(accelerator: Accelerator, folder: Path) -> Path:
    """The first process's choice, as another may look when the folder is there already."""
    from accelerate.utils import broadcast_object_list

    chosen = [folder]
    if accelerator.num_processes > 1:
        broadcast_object_list(chosen)
    return chosen[0]


def _run_stage(
    stage: Stage,
    folder: Path,
    accelerator: Accelerator,
    host: Host,
    texts: Mapping[str, str],
    others: Sequence[Path],
    options: Options,
) -> None:
    run = Run(
        recipe=stage,
        folder=folder,
        device=accelerator.device,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
        objective=objective_formula(
            stage.terms, selects=stage.selection is not None, teacher=stage.teacher
        ),
    )
    with _explained(folder), locked(folder) if run.main else nullcontext(), Signals() as signals:
        if run.main:
            keep_texts(folder, {**texts, "env.json": record(host)})
        trust(stage.trusted)
        run.tokenizer = load_tokenizer_of(run, others, accelerator)
        trainer = prepare(run, host, accelerator, signals, CHECKPOINTS)
        if run.main:
            compare_fingerprints(folder, _fingerprints(run), options.accept)
        resume(trainer)
        with host.listening(stage.components()):
            _train(trainer)


def _fingerprints(run: Run) -> dict[str, str]:
    """What a run that is continued must find unchanged."""
    from importlib.metadata import version

    found = {
        "data": run.laid("train").split.fingerprint,
        "tokenizer": of_tokenizer(run.tokenizer),
        "versions": ", ".join(f"{name} {version(name)}" for name in _VERSIONS),
    }
    if run.teacher is not None:
        found["teacher"] = asked(run.teacher, "fingerprint", of=str)
    return found


def resume(trainer: Trainer) -> None:
    """Put back the newest whole checkpoint, if there is one."""
    run = trainer.run
    newest = trainer.checkpoints.newest()
    if newest is None:
        run.micro_batch = kept_micro_batch(run, {})
        return
    state = trainer.checkpoints.load(newest)
    run.step, run.tokens = state["step"], state["tokens"]
    run.micro_batch = kept_micro_batch(run, state)
    run.scores = state.get("scores", {})
    trainer.rows.go_on(state.get("rows"))
    run.chunk = trainer.objective.chunk = state.get("chunk", run.chunk)
    trainer.recorder.restore(sums_of(newest))
    run.say(f"{run.recipe.run_name} continues after step {run.step} of {run.steps}: {run.folder}")


def _train(trainer: Trainer) -> None:
    run, host = trainer.run, trainer.host
    try:
        host.emit("kdcore_run_start", run=run)
        trainer.train()
        finish_student(run)
        if run.main:
            save_final(run)
        trainer.accelerator.wait_for_everyone()
    except BaseException as error:
        _end(trainer, error)
        raise
    host.emit("kdcore_run_end", run=run, error=None)


def _end(trainer: Trainer, error: BaseException) -> None:
    """Tell everybody that the run failed; what they raise must not hide why."""
    try:
        trainer.host.emit("kdcore_run_end", run=trainer.run, error=error)
    except KdcoreError as another:
        _log.warning("%s", another)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """What a person can act on; for the rest the traceback is kept in the run folder."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"the device is out of memory ({str(error).splitlines()[0]}); the same command with "
            "--set train.micro_batch=1 or train.checkpointing=true needs less"
        ) from error
    except Exception as error:
        if is_full(error):
            raise full_disk(error, folder) from error
        if isinstance(error, PluginError) or not isinstance(error, KdcoreError):
            with suppress(OSError):
                text = without_own_secrets(traceback.format_exc())
                (folder / "traceback.txt").write_text(text)
        raise

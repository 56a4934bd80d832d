"""Runs the stages of a recipe in order: trains, resumes, or reuses each."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kdcore.checksums import damage, refuse_changed
from kdcore.distributed import naming_lost
from kdcore.distributed.disks import Disk, bring, disk_of, main_first, of_all, of_first
from kdcore.errors import (
    Interrupted,
    KdcoreError,
    PluginError,
    RunError,
    UsageError,
    is_out_of_memory,
)
from kdcore.files import is_full, machine_error, write_whole
from kdcore.guard import call_checked, call_checked_list
from kdcore.hashing import tokenizer_hash
from kdcore.objective.columns import columns_fingerprint
from kdcore.recipe.overrides import expand_grid
from kdcore.recipe.recipe import read_recipe, wanted_stages
from kdcore.recipe.sweep import read_sweep
from kdcore.redact import redact_own_secrets
from kdcore.runs.artifacts import finish_student, save_final
from kdcore.runs.begun import as_begun
from kdcore.runs.environment import describe_differences, record
from kdcore.runs.extend import adopt_recipe, find_extendable
from kdcore.runs.folder import (
    CHECKPOINTS,
    FAILURE,
    FINAL,
    RESOLVED,
    choose_folder,
    compare_fingerprints,
    find_run,
    finished,
    locked,
    refused_by_machine,
    stage_of,
    write_texts,
)
from kdcore.runs.open import OpenRequest, open_stage
from kdcore.training.checkpoints.folders import last_step
from kdcore.training.run_state import RunState
from kdcore.training.setup import make_accelerator, prepare
from kdcore.training.signals import Signals

if TYPE_CHECKING:
    from accelerate import Accelerator

    from kdcore.api.run import Stage
    from kdcore.plugin.manager import PluginManager
    from kdcore.recipe.recipe import Recipe
    from kdcore.training.trainer import Trainer


_log = logging.getLogger("kdcore")
_VERSIONS = ("torch", "transformers", "kdcore")  # versions that affect results


@dataclass(frozen=True)
class RunRequest:
    """The request of `kdcore run`."""

    recipe: str = ""  # as typed: a recipe or a run
    out: Path = Path("runs")
    sets: tuple[str, ...] = ()
    each: tuple[str, ...] = ()
    logs: tuple[str, ...] = ()
    stage: str | None = None  # only this one, and those that it needs
    fresh: bool = False
    accept: frozenset[str] = frozenset()
    folder: Path | None = None  # a run to resume, whatever its recipe's identity
    on_finished: Callable[[Path], None] = lambda folder: None  # called for each finished stage


def run_recipe(recipe: Recipe, host: PluginManager, request: RunRequest) -> list[Path]:
    """Run every unfinished stage; returns the folder of each stage."""
    done: dict[str, Path] = {}
    wanted = wanted_stages(recipe, request.stage)
    for name in wanted:
        finals = {stage: folder / FINAL for stage, folder in done.items()}
        stage = recipe.build(name, finals)
        texts = {"recipe.toml": recipe.text, "resolved.toml": recipe.resolved(stage)}
        if request.folder is not None and not stage.name:
            stage = replace(stage, name=stage_of(request.folder, stage.run_name))
        accelerator = make_accelerator(stage.train)
        disk = disk_of(accelerator, request.out)
        fresh = request.fresh and request.stage in (None, name)
        going_on = None if fresh else _going_on(stage, texts["resolved.toml"], host, request)
        folder = going_on or choose_folder(
            request.out, stage.run_name, recipe.identity(name), fresh=fresh
        )
        if going_on is not None and accelerator.is_main_process:
            adopt_recipe(folder, texts["resolved.toml"], host, request.accept)
        # The first process's choice: others may look after the folder was created.
        folder = of_first(accelerator, folder)
        _refuse_checkpoints_elsewhere(accelerator, disk, folder)
        if _finished(accelerator, disk, folder):
            if disk.is_first:
                refuse_changed(folder / FINAL)
            _log.info("%s is finished: %s is used", stage.run_name, folder)
            stop = 0
        else:
            _refuse_missing(recipe, request, name, wanted[wanted.index(name) + 1 :])
            bring(accelerator, disk, folder / RESOLVED)
            stage, others = as_begun(stage, folder), list(done.values())
            stop = _run_stage(stage, folder, accelerator, disk, host, texts, others, request)
        if any(name in table.needs for table in recipe.stages):
            bring(accelerator, disk, folder / FINAL)
        done[name] = folder
        request.on_finished(folder)
        if stop:
            said = f"interrupted; {stage.run_name} is finished, and the same command resumes"
            raise Interrupted(said, stop)
    return list(done.values())


def _refuse_missing(recipe: Recipe, request: RunRequest, first: str, later: Sequence[str]) -> None:
    """Raise RunError before a stage trains whose successor would end for want of a file."""
    out, fresh = request.out, request.fresh
    waiting = [
        name
        for name in later
        if not finished(
            choose_folder(out, recipe.run_name(name), recipe.identity(name), fresh=fresh)
        )
    ]
    said = [each.message for name in (first, *waiting) for each in recipe.missing.get(name, ())]
    if said:
        raise RunError("\n".join(dict.fromkeys(said)))


def _finished(accelerator: Accelerator, disk: Disk, folder: Path) -> bool:
    """Whether the run is finished on the first process's disk."""
    there = finished(folder)
    return there if disk.is_shared else bool(of_first(accelerator, there))


def _refuse_checkpoints_elsewhere(accelerator: Accelerator, disk: Disk, folder: Path) -> None:
    """If another node was the first one before, the run would begin again in silence."""
    if disk.is_shared:
        return
    mine, *others = of_all(accelerator, last_step(folder / CHECKPOINTS))
    newest = max(others)
    if newest > mine:
        first = f"its newest is of step {mine}" if mine else "it has none"
        raise RunError(
            f"process {1 + others.index(newest)} has a checkpoint of step {newest} in {folder} on "
            f"its own disk, and the disk of the first process has another one: {first}. Start "
            "that node as the first (--node-rank 0), or copy the folder to the first one"
        )


def _compare_nodes(accelerator: Accelerator, run: RunState) -> None:
    """Raise UsageError where nodes with disks of their own read other data or models."""
    if run.disk.is_shared:
        return
    first, *others = of_all(accelerator, _fingerprints(run))
    for rank, found in enumerate(others, start=1):
        for name, value in found.items():
            if first[name] != value:
                raise UsageError(
                    f"process {rank} has another {name} than the first process: {value}, not "
                    f"{first[name]}. Nodes without a shared disk need the same files and versions"
                )


def _going_on(stage: Stage, resolved: str, host: PluginManager, request: RunRequest) -> Path | None:
    """The folder that is named, or that the accepted changes lead to."""
    name = stage.run_name
    return request.folder or find_extendable(request.out, name, resolved, host, request.accept)


def _run_stage(
    stage: Stage,
    folder: Path,
    accelerator: Accelerator,
    disk: Disk,
    host: PluginManager,
    texts: Mapping[str, str],
    others: Sequence[Path],
    request: RunRequest,
) -> int:
    """Run a stage to its end. Returns a signal that came too late to stop it, or 0."""
    if missing := [
        said for each in stage.components() for said in call_checked_list(each, "missing")
    ]:
        raise RunError("\n".join(missing))
    asked = OpenRequest(
        stage, folder, trusted=stage.trusted, others=others, accelerator=accelerator, disk=disk
    )
    with ExitStack() as around:
        around.enter_context(_explained(folder))
        with main_first(accelerator):
            if accelerator.is_main_process:
                around.enter_context(locked(folder, _report_waiting))
        if _finished(accelerator, disk, folder):
            _log.info("%s is finished: %s is used", stage.run_name, folder)
            return 0
        if accelerator.is_main_process:
            around.enter_context(_noted(folder))
        around.enter_context(naming_lost())
        if accelerator.is_main_process:
            write_texts(folder, {**texts, "env.json": record(host)})
        run = open_stage(asked, upto="tokenizer")
        trainer = prepare(run, host, accelerator, Signals(), CHECKPOINTS)
        _compare_nodes(accelerator, run)
        if run.main:
            compare_fingerprints(folder, _fingerprints(run), request.accept)
        if trainer.resume():
            steps = f"step {run.step} of {run.steps}"
            run.say(f"{run.recipe.run_name} continues after {steps}: {run.folder}")
        with host.listening(stage.components()), trainer.signals as signals:
            _train(trainer)
            return signals.agreed(accelerator, now=True)


def _report_waiting(said: str) -> None:
    _log.info("%s: waiting for it, and continuing the run if that process is gone", said)


@contextmanager
def _noted(folder: Path) -> Iterator[None]:
    """Record in the run folder why a run ended early."""
    path = folder / FAILURE
    path.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        first = str(error).partition("\n")[0].removesuffix(":")
        message = first if isinstance(error, KdcoreError) else f"{type(error).__name__}: {first}"
        with suppress(OSError):
            write_whole(path, redact_own_secrets(message) + "\n")
        raise


def _fingerprints(run: RunState) -> dict[str, str]:
    """Values that must not change between attempts of a run."""
    from importlib.metadata import version

    found = {
        "data": run.laid("train").split.fingerprint,
        "tokenizer": tokenizer_hash(run.tokenizer),
        "versions": ", ".join(f"{name} {version(name)}" for name in _VERSIONS),
    }
    if run.teacher is not None:
        found["teacher"] = call_checked(run.teacher, "fingerprint", of=str)
    if (columns := columns_fingerprint(run)) is not None:
        found["columns"] = columns
    return found


def _train(trainer: Trainer) -> None:
    run, host = trainer.run, trainer.host
    try:
        host.emit("kdcore_run_start", run=run)
        trainer.train()
        trainer.put_back_best()
        student = finish_student(run, trainer.layout)
        with main_first(trainer.accelerator):
            if run.main:
                assert student is not None, "the main process keeps it"
                save_final(run, student)
    except BaseException as error:
        _end(trainer, error)
        raise
    host.emit("kdcore_run_end", run=run, error=None)


def _end(trainer: Trainer, error: BaseException) -> None:
    """Report the failure to all listeners; their own errors must not hide it."""
    try:
        trainer.host.emit("kdcore_run_end", run=trainer.run, error=error)
    except KdcoreError as another:
        _log.warning("%s", another)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """The actionable part of an error; the run folder keeps the traceback."""
    try:
        with naming_lost():
            yield
    except Exception as error:
        if is_out_of_memory(error):
            raise RunError(
                f"the device is out of memory ({str(error).splitlines()[0]}); the same command "
                "with --set train.micro_batch=1 or train.checkpointing=true needs less"
            ) from error
        unexpected = isinstance(error, PluginError) or not isinstance(error, KdcoreError)
        problem = machine_error(error) if unexpected or is_full(error) else None
        if problem is not None:
            raise refused_by_machine(problem, folder) from error
        if unexpected:
            with suppress(OSError):
                text = redact_own_secrets(traceback.format_exc())
                (folder / "traceback.txt").write_text(text)
        raise


def run_all(request: RunRequest, host: PluginManager) -> list[Path]:
    """Run everything requested; returns the distinct run folders."""
    from accelerate import PartialState

    with naming_lost():
        folders = _runs(request, host)
    if PartialState().is_main_process:
        host.emit("kdcore_runs_end", folders=folders)
    return folders


def _runs(asked: RunRequest, host: PluginManager) -> list[Path]:
    folder = _folder(asked)
    request = replace(asked, folder=folder)
    if folder is not None:
        name = str(folder / RESOLVED)
        if problem := damage(folder / RESOLVED):
            raise RunError(
                f"{problem} since the run began: what it was is not known. Give the recipe's name "
                "instead of the folder; changes of a run are given with --set and --accept"
            )
        recipe = read_recipe(name, host, sets=asked.sets, logs=asked.logs)
        _report_differences(recipe, host)
        return run_recipe(recipe, host, request)
    # All recipes of the product are checked before the first one runs.
    recipes = [
        (label, read_recipe(asked.recipe, host, sets=sets, logs=asked.logs))
        for label, sets in expand_grid(asked.sets, asked.each)
    ]
    for _, recipe in recipes:
        _refuse_sweep(recipe, asked)
    return _run_each(recipes, host, request)


def _refuse_sweep(recipe: Recipe, asked: RunRequest) -> None:
    if recipe.sweep is not None:
        count = read_sweep(recipe.sweep, asked.each, recipe.host.provided("executor")).count
        raise UsageError(
            f"{asked.recipe} has a [sweep] of {count} runs: type kdcore sweep {asked.recipe}, or "
            f"kdcore run {asked.recipe} --set sweep= for the recipe alone"
        )


def _folder(asked: RunRequest) -> Path | None:
    """The run folder with that name, if there is no such recipe."""
    from kdcore.recipe.files import find_recipe

    if os.path.isdir(asked.recipe):
        return find_run(asked.recipe, asked.out)
    try:
        find_recipe(asked.recipe)
    except KdcoreError as unknown_recipe:
        try:
            return find_run(asked.recipe, asked.out)
        except KdcoreError:
            raise unknown_recipe from None
    return None


def _report_differences(recipe: Recipe, host: PluginManager) -> None:
    """For another run's resolved.toml, report differences to that run's env.json."""
    said = describe_differences(recipe.path.parent, host)
    if said:
        _log.info(said)


def _run_each(
    recipes: list[tuple[str, Recipe]], host: PluginManager, request: RunRequest
) -> list[Path]:
    folders: dict[Path, None] = {}
    failures: list[str] = []
    for label, recipe in recipes:
        for note in recipe.notes:
            _log.info(note)
        _report_differences(recipe, host)
        if label:
            _log.info("%s: %s", recipe.name, label)
        try:
            folders.update(dict.fromkeys(run_recipe(recipe, host, request)))
        except RunError as error:
            if len(recipes) == 1:
                raise
            failures.append(f"{label}: {error}")
            _log.warning("%s failed: %s", label, error)
    if failures:
        raise RunError(
            f"{len(failures)} of {len(recipes)} failed; the same command tries these again:\n"
            + "\n".join(failures)
        )
    return list(folders)

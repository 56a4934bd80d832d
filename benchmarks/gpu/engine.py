"""A few steps of a recipe by kdcore, measured: time, tokens, memory, kernels."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import founding
import torch
from founding import plan_of, read
from roofline import card_of, operations
from world import GIB, World, peak, start_peak, synchronise

from kdcore import Component, Run, hookimpl
from kdcore.recipe.recipe import Recipe

WINDOWS = ("warm-up", "second", "third", "fourth")


class Enough(BaseException):
    """Ends a run from within: all was measured."""


class Watch(Component):
    """Times windows of steps, notes memory, and ends the run."""

    name = "watch"
    component_kind = "callback"

    def __init__(self, window: int) -> None:
        self.window, self.marks = window, list[tuple[float, int]]()
        self.micro_batch, self.memory = 0, dict[str, float]()
        self.tokens_a_step, self.loss = 0.0, float("nan")
        self.written = dict[str, float]()
        self.profiler: Any = None
        self.kernels: Mapping[str, Any] = {}

    @hookimpl
    def kdcore_log(self, run: Run, record: Any) -> None:
        """The loss of the last window, and what was generated in it."""
        self.loss, self.written = record.loss, dict(record.rollout)
        if self.written:
            share, drawn = run.recipe.writing.share_at(0), run.recipe.train.drawn
            self.written["tokens a step"] = share * drawn * self.written["length"]

    @hookimpl
    def kdcore_step_start(self, run: Run, step: int) -> None:
        """At the end of each window, look at the clock."""
        if self.profiler is not None:
            synchronise()
            try:
                self.profiler.__exit__(None, None, None)
                self.kernels = kernels_of(self.profiler)
            except (AttributeError, RuntimeError) as error:  # times and memory are known by now
                self.kernels = {"not profiled": str(error)}
            raise Enough
        if step == 1:
            start_peak()  # looking for the rows at once went to the limit
        if (step - 1) % self.window:
            return
        synchronise()
        self.marks.append((time.perf_counter(), run.tokens))
        if len(self.marks) <= len(WINDOWS):
            return
        self.micro_batch, self.memory = run.micro_batch, peak()
        rows: Any = run.rows("train")
        self.tokens_a_step = float(rows.lengths.sum()) * run.epochs / run.steps
        self.profiler = torch.profiler.profile(activities=activities())
        self.profiler.__enter__()


def activities() -> list[Any]:
    """What the profiler watches here."""
    kinds = torch.profiler.ProfilerActivity
    return [kinds.CPU, *([kinds.CUDA] if torch.cuda.is_available() else [])]


def kernels_of(profiler: Any) -> dict[str, Any]:
    """Kernels of one step, the GPU's milliseconds in them, and those that take longest."""
    on_gpu = torch.autograd.DeviceType.CUDA
    found = [event for event in profiler.key_averages() if event.device_type == on_gpu]
    longest = sorted(found, key=lambda event: -event.self_device_time_total)[:8]
    return {
        "kernels": sum(event.count for event in found),
        "busy_ms": sum(event.self_device_time_total for event in found) / 1e3,
        "longest": {event.key[:80]: event.self_device_time_total / 1e3 for event in longest},
    }


def measure(
    world: World, name: str, sets: Sequence[str] = (), *, window: int | None = None
) -> dict[str, Any]:
    """A stage's steps as the engine runs them, its last window alone, next to its plan."""
    if window is not None:
        sets = [*sets, f"{founding.train(name)}.log_every={window}"]
    from kdcore.runs.runner import RunRequest, run_recipe

    recipe = read(world, name, sets)
    start_peak()
    watch = Watch(window or world.window)
    with TemporaryDirectory(dir=runs_of(world)) as folder, recipe.host.listening([watch]):
        try:
            run_recipe(recipe, recipe.host, RunRequest(out=Path(folder)))
        except Enough:
            pass
        else:
            raise RuntimeError("the run ended before it was measured")
    found = {"loss": watch.loss, "rows at once": watch.micro_batch, **watch.kernels}
    found["memory"] = watch.memory
    found["windows"] = {
        name: 1e3 * (after[0] - before[0]) / watch.window
        for name, before, after in zip(WINDOWS, watch.marks, watch.marks[1:], strict=False)
    }
    found |= _written(watch.written, found["windows"][WINDOWS[-1]] / 1e3)
    trained = (watch.marks[-1][1] - watch.marks[-2][1]) / watch.window
    found |= pace(world, name, found["windows"][WINDOWS[-1]] / 1e3, watch.tokens_a_step, trained)
    found["planned"] = planned(world, name, sets, watch.micro_batch)
    return found


def _written(rollout: dict[str, float], seconds: float) -> dict[str, float]:
    """What was generated in a step of so many seconds, and how fast."""
    if not rollout:
        return {}
    speed = rollout["tokens a step"] / (rollout["time_share"] * seconds)
    return {f"written, {key}": value for key, value in (rollout | {"tokens/s": speed}).items()}


def runs_of(world: World) -> Path:
    """Where run folders go."""
    world.runs.mkdir(parents=True, exist_ok=True)
    return world.runs


def pace(
    world: World, name: str, seconds: float, tokens: float, trained: float
) -> dict[str, float | None]:
    """A step's milliseconds, tokens a second and MFU; `trained` tokens are valid ones."""
    stage = founding.stage_of(world, name)
    kept = trained * stage.trained if stage.scored else trained
    card = card_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    work = operations(stage, tokens, kept)
    return {
        "ms": 1e3 * seconds,
        "tokens a step": tokens,
        "valid tokens a step": trained,
        "tokens/s": tokens / seconds,
        "TFLOP a step": work / 1e12,
        "MFU": work / seconds / card.flops if card and not world.rehearse else None,
    }


def planned(world: World, name: str, sets: Sequence[str], rows: int) -> dict[str, Any]:
    """GiB that `kdcore plan` says, with the rows at once that the run found."""
    alone = [*sets, f"{founding.train(name)}.micro_batch={rows}"]
    recipe: Recipe = read(world, name, alone, weights=False)
    plan = plan_of(recipe)
    if plan.estimate is None:
        raise RuntimeError(f"kdcore plan knows no memory: {plan.unknown}")
    amounts = {what: size / GIB for what, size in plan.estimate.memory}
    return {"peak": plan.estimate.peak / GIB, **amounts, "unknown": list(plan.estimate.unknown)}

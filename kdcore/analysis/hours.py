"""The duration of a stage: predicted from this machine's speed, or measured in a few real steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

import torch

from kdcore.analysis.work import NOTHING, Cost, Work
from kdcore.api.teacher import Teacher
from kdcore.errors import KdcoreError
from kdcore.guard import call_checked
from kdcore.models.loading import HALF, precision_of
from kdcore.runs.folder import CHECKPOINTS
from kdcore.runs.open import OpenRequest, open_stage, stage_outputs
from kdcore.training.evaluation import run_evals
from kdcore.training.setup import make_accelerator, prepare
from kdcore.training.signals import Signals

if TYPE_CHECKING:
    from kdcore.analysis.plan import StagePlan
    from kdcore.api.run import Stage
    from kdcore.plugin.manager import PluginManager
    from kdcore.recipe.recipe import Recipe
    from kdcore.training.run_state import RunState
    from kdcore.training.trainer import Trainer


_WARM = 2  # warm-up steps before timing
_TIMED = (5, 25)  # at least and at most so many steps
_ENOUGH = 2.0  # CPU seconds after which no more are timed
# Fractions of the measured speed that training reaches. CPU values are fitted to the CPU seconds of
# 22 stages on quiet cores; GPU values are those of benchmarks/roofline.py, and are not measured.
_OF_PEAK = {"cpu": 0.53, "cuda": 0.55}
_OF_BANDWIDTH = {"cpu": 0.43, "cuda": 0.85}
_SMALL_SUMS = 3  # that take as long as the host's part of a kernel, on a CPU
_LAUNCH = 5e-6  # host seconds per kernel of a GPU


@dataclass(frozen=True)
class Rates:
    """Measured speed of a device."""

    device: str
    operations: float  # per second, in matrix products of the student's size
    bandwidth: float  # bytes per second
    launch: float  # host seconds per kernel

    def seconds(self, cost: Cost) -> float:
        """A GPU overlaps computing with its host; on a CPU they add up."""
        busy = cost.operations / (_OF_PEAK[self.device] * self.operations)
        busy += cost.bytes / (_OF_BANDWIDTH[self.device] * self.bandwidth)
        host = cost.kernels * self.launch
        return max(busy, host) if self.device == "cuda" else busy + host


@dataclass(frozen=True)
class Hours:
    """The duration of a stage, including evaluations, caches and generation."""

    seconds: float
    how: Literal["measured", "predicted"]
    why: str  # how it was obtained, or why it was not measured
    cpu_seconds: float | None = None  # if measured without a GPU


def rates_of(work: Work, precision: str) -> Rates:
    """Measure a matrix product of the student's size and sums, for less than a second."""
    rows = max(1, min(4096, work.micro_batch * work.time))
    return _rates(rows, work.student.width, work.student.inner, precision)


@lru_cache
def _rates(rows: int, width: int, inner: int, precision: str) -> Rates:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = HALF.get(precision_of(precision, device), torch.float32)
    left = torch.ones(rows, width, dtype=kind, device=device)
    right = torch.ones(width, inner, dtype=kind, device=device)
    operations = 2 * rows * right.numel()
    large = torch.ones(2**23, device=device)  # exceeds every cache
    product = _fastest(lambda: left @ right, device)
    added = _fastest(lambda: large.add_(1), device)
    launch = _LAUNCH if device.type == "cuda" else _SMALL_SUMS * _of_a_small_sum(device)
    return Rates(device.type, operations / product, 2 * 4 * large.numel() / added, launch)


def _of_a_small_sum(device: torch.device) -> float:
    """Seconds; ten at a time, as one is as short as reading the clock."""
    small = torch.ones(16, device=device)

    def ten() -> None:
        for _ in range(10):
            small.add_(1)

    return _fastest(ten, device) / 10


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of many repetitions, as others may use the machine too.

    A single thread counts its own CPU seconds, so that the time of others is not part of it.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    best, ends = math.inf, time.perf_counter() + 0.2
    for turn in range(1000):
        began = clock()
        work()
        _wait(device)
        best = min(best, clock() - began) if turn else best
        if turn > 2 and time.perf_counter() > ends:
            break
    return best


def predicted(plan: StagePlan) -> Hours | None:
    """The prediction from operations and bytes; None if tokens or model are unknown."""
    if plan.estimate is None or plan.estimate.work is None or not plan.steps:
        return None
    step = tokens_in_step(plan)
    if step is None:
        return None
    work = plan.estimate.work
    rates = rates_of(work, plan.stage.train.precision)
    seconds = rates.seconds(work.step(step, _context(plan)).times(plan.steps))
    seconds += rates.seconds(_around(plan, work, step))
    said = f"{rates.operations / 1e9:,.0f} GFLOP/s and {rates.bandwidth / 1e9:,.0f} GB/s"
    return Hours(seconds, "predicted", f"from operations and bytes, at {said} as measured here")


def tokens_in_step(plan: StagePlan) -> float | None:
    """The mean number."""
    if not plan.tokens or not plan.in_epoch:
        return None
    return plan.tokens / plan.in_epoch * plan.stage.train.drawn


def _context(plan: StagePlan) -> float:
    """The tokens that attention reaches: documents are isolated."""
    if plan.tokens and plan.documents:
        return min(plan.stage.data.block, plan.tokens / plan.documents)
    return plan.stage.data.block


def _around(plan: StagePlan, work: Work, step: float) -> Cost:
    """Time outside steps: evaluations, teacher caches, and generation."""
    assert plan.steps is not None
    return (
        _evaluating(plan, work)
        + work.storing(min(plan.tokens or 0, plan.steps * step), _context(plan))
        + _writing(plan, work)
    )


def _evaluating(plan: StagePlan, work: Work) -> Cost:
    if not plan.tokens or not plan.rows or plan.held_out is None:
        return NOTHING
    tokens = plan.held_out * plan.tokens / plan.rows
    return work.reading(tokens, _context(plan)).times(_evaluations(plan))


def _evaluations(plan: StagePlan) -> int:
    """How many there are during training."""
    train, steps = plan.stage.train, plan.steps or 0
    every = plan.in_epoch / train.drawn if train.eval_every == "epoch" and plan.in_epoch else None
    each = every or (train.eval_every if isinstance(train.eval_every, int) else steps)
    return math.ceil(steps / max(1, each)) + bool(train.eval_first)


def _writing(plan: StagePlan, work: Work) -> Cost:
    stage, options = plan.stage, plan.stage.writing
    if stage.rollout is None or plan.steps is None:
        return NOTHING
    share = options.share
    mean = share if isinstance(share, int | float) else (share.start + share.end) / 2
    answers = plan.steps * stage.train.drawn * mean
    group = min(options.group(stage.data.block), max(1, round(stage.train.drawn * mean)))
    return work.writing(answers * stage.rollout.max_new_tokens, group, stage.data.block)


def measured(
    recipe: Recipe, plan: StagePlan, host: PluginManager, out: Path, guess: Hours | None
) -> Hours | None:
    """From real steps and an evaluation, run in a temporary folder.

    Teachers' stores are taken as empty: the first epoch and the first evaluation fill them. If that
    fails, the prediction with the reason.
    """
    if guess is None or plan.steps is None:
        return guess
    keeps = any(_keeps_store(one) for one in plan.stage.components())
    try:
        first, later = _tried(recipe, plan.stage.name, host, out, keeps=keeps)
    except (KdcoreError, OSError) as error:
        return replace(guess, why=f"{guess.why}; not measured: {error}")
    times, filling = _evaluations(plan) - 1, min(plan.steps, _steps_in_epoch(plan))
    clock, cpu = (
        first.step[n] * filling
        + later.step[n] * (plan.steps - filling)
        + first.evaluation[n]
        + later.evaluation[n] * times
        for n in (0, 1)
    )
    said = f"{first.steps} steps of {first.step[0]:.3g} s after {_WARM} to warm up"
    said += f", {later.step[0]:.3g} s once stores are filled" if keeps else ""
    said += f", and an evaluation of {first.evaluation[0]:.3g} s"
    return Hours(clock, "measured", said, None if first.on_gpu else cpu)


def _steps_in_epoch(plan: StagePlan) -> int:
    """Those that fill a store."""
    return math.ceil(plan.in_epoch / plan.stage.train.drawn) if plan.in_epoch else plan.steps or 0


@dataclass(frozen=True)
class _Trial:
    """Seconds and CPU seconds of a step, the mean of several, and of an evaluation."""

    steps: int
    step: tuple[float, float]
    evaluation: tuple[float, float]
    on_gpu: bool


def _keeps_store(component: object) -> bool:
    if not isinstance(component, Teacher):
        return False
    return bool(call_checked(component, "bytes_per_token", of=(int, float)))


def _tried(
    recipe: Recipe, name: str, host: PluginManager, out: Path, *, keeps: bool
) -> tuple[_Trial, _Trial]:
    """A few steps, including their rollouts, and one evaluation; again with filled stores."""
    with TemporaryDirectory(prefix="kdcore-plan-") as folder:

        def trial(place: Path, most: int) -> _Trial:
            place.mkdir()
            stage = recipe.build(name, stage_outputs(recipe, name, out))
            return _trial(stage, host, place, most, twice=not keeps)

        first = trial(Path(folder) / "run", _TIMED[1])
        return first, trial(Path(folder) / "again", first.steps) if keeps else first


def _trial(stage: Stage, host: PluginManager, place: Path, most: int, *, twice: bool) -> _Trial:
    """At most so many timed steps, and one evaluation or the second of two, in this folder."""
    accelerator = make_accelerator(stage.train)
    request = OpenRequest(stage, place, trusted=stage.trusted, accelerator=accelerator)
    run = open_stage(request, upto="tokenizer")
    trainer = prepare(run, host, accelerator, Signals(), CHECKPOINTS)
    warm = min(_WARM, run.steps - 1)
    _take(trainer, warm)
    began, most = _now(run.device), min(most, run.steps - warm)
    _take(trainer, min(_TIMED[0], most))
    while _now(run.device)[1] - began[1] < _ENOUGH and run.step - warm < most:
        _take(trainer, 1)
    steps, taken = run.step - warm, _since(began, run.device)
    trainer.move_schedules(run.step)
    evaluation = _evaluation(run)
    if twice and evaluation[1] < _ENOUGH:
        evaluation = _evaluation(run)  # the first one may also have loaded modules
    each = taken[0] / steps, taken[1] / steps
    return _Trial(steps, each, evaluation, run.device.type == "cuda")


def _evaluation(run: RunState) -> tuple[float, float]:
    """Seconds and CPU seconds of one."""
    began = _now(run.device)
    run_evals(run)
    return _since(began, run.device)


def _take(trainer: Trainer, steps: int) -> None:
    for _ in range(steps):
        trainer.step(trainer.run.step + 1)
        trainer.run.step += 1


def _now(device: torch.device) -> tuple[float, float]:
    """The clock and this process's CPU seconds, when the device has finished."""
    _wait(device)
    return time.perf_counter(), time.process_time()


def _since(began: tuple[float, float], device: torch.device) -> tuple[float, float]:
    clock, cpu = _now(device)
    return clock - began[0], cpu - began[1]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

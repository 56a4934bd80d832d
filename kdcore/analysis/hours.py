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
from kdcore.training.setup import make_accelerator, prepare
from kdcore.training.signals import Signals

if TYPE_CHECKING:
    from kdcore.analysis.plan import StagePlan
    from kdcore.plugin.manager import PluginManager
    from kdcore.recipe.recipe import Recipe


_WARM = 2  # warm-up steps before timing
_TIMED = 5
# Fractions of the measured speed that training reaches, and host seconds per kernel. CPU values are
# fitted to CPU seconds of stages of recipes/cpu, which they predict within a factor of two; GPU
# values are those of benchmarks/roofline.py, and are not measured.
_OF_PEAK = {"cpu": 0.4, "cuda": 0.55}
_OF_BANDWIDTH = {"cpu": 0.25, "cuda": 0.85}
_LAUNCH = {"cpu": 30e-6, "cuda": 5e-6}


@dataclass(frozen=True)
class Rates:
    """Measured speed of a device."""

    device: str
    operations: float  # per second, in matrix products of the student's size
    bandwidth: float  # bytes per second

    def seconds(self, cost: Cost) -> float:
        """A GPU overlaps computing with its host; on a CPU they add up."""
        busy = cost.operations / (_OF_PEAK[self.device] * self.operations)
        busy += cost.bytes / (_OF_BANDWIDTH[self.device] * self.bandwidth)
        host = cost.kernels * _LAUNCH[self.device]
        return max(busy, host) if self.device == "cuda" else busy + host


@dataclass(frozen=True)
class Hours:
    """The duration of a stage, including evaluations, caches and generation."""

    seconds: float
    how: Literal["measured", "predicted"]
    why: str  # how it was obtained, or why it was not measured


def rates_of(work: Work, precision: str) -> Rates:
    """Measure a matrix product of the student's size and a sum, for at most half a second."""
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
    return Rates(device.type, operations / product, 2 * 4 * large.numel() / added)


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of many repetitions, as others may use the machine too."""
    best, ends = math.inf, time.perf_counter() + 0.2
    for turn in range(1000):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        best = min(best, now - began) if turn else best
        if turn > 2 and now > ends:
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
    train, steps = plan.stage.train, plan.steps or 0
    if not plan.tokens or not plan.rows or plan.held_out is None:
        return NOTHING
    every = plan.in_epoch / train.drawn if train.eval_every == "epoch" and plan.in_epoch else None
    each = every or (train.eval_every if isinstance(train.eval_every, int) else steps)
    times = math.ceil(steps / max(1, each)) + bool(train.eval_first)
    tokens = plan.held_out * plan.tokens / plan.rows
    return work.reading(tokens, _context(plan)).times(times)


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
    """The prediction with its steps replaced by real ones, run in a temporary folder.

    If that fails, the prediction with the reason.
    """
    name, work = plan.stage.name, plan.estimate.work if plan.estimate else None
    if guess is None or work is None or plan.steps is None:
        return guess
    if any(_keeps_store(one) for one in plan.stage.components()):
        return replace(guess, why=f"{guess.why}; not measured: a teacher's store is to be filled")
    try:
        each = _seconds_of_step(recipe, name, host, out)
    except (KdcoreError, OSError) as error:
        return replace(guess, why=f"{guess.why}; not measured: {error}")
    step = tokens_in_step(plan) or 0.0
    rest = _evaluating(plan, work)
    seconds = each * plan.steps
    seconds += rates_of(work, plan.stage.train.precision).seconds(rest) if step else 0.0
    said = f"{_TIMED} steps of {each:.3g} s after {_WARM} to warm up; evaluations are predicted"
    return Hours(seconds, "measured", said)


def _keeps_store(component: object) -> bool:
    if not isinstance(component, Teacher):
        return False
    return bool(call_checked(component, "bytes_per_token", of=(int, float)))


def _seconds_of_step(recipe: Recipe, name: str, host: PluginManager, out: Path) -> float:
    """The mean of a few steps, including their rollouts."""
    with TemporaryDirectory(prefix="kdcore-plan-") as folder:
        stage = recipe.build(name, stage_outputs(recipe, name, out))
        accelerator = make_accelerator(stage.train)
        place = Path(folder) / "run"
        place.mkdir()
        request = OpenRequest(stage, place, trusted=stage.trusted, accelerator=accelerator)
        run = open_stage(request, upto="tokenizer")
        trainer = prepare(run, host, accelerator, Signals(), CHECKPOINTS)
        began = 0.0
        steps = min(_WARM + _TIMED, run.steps)
        warm = min(_WARM, steps - 1)
        for step in range(1, steps + 1):
            if step == warm + 1:
                _wait(run.device)
                began = time.perf_counter()
            trainer.step(step)
            run.step = step
        _wait(run.device)
        return (time.perf_counter() - began) / (steps - warm)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

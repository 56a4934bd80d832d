"""Check the contracts of evals and loggers in a tiny run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kdcore.api.component import Component, hookimpl
from kdcore.api.hookspecs import Record
from kdcore.api.observers import Eval, Logger
from kdcore.api.run import Run
from kdcore.errors import KdcoreError
from kdcore.testing.claims import require
from kdcore.testing.runs import tiny_run


def check_eval(evaluation: Eval) -> None:
    """Assert that an eval is deterministic, returns numbers or texts, and changes nothing."""
    with tiny_run() as run:
        before = {name: each.clone() for name, each in run.student.state_dict().items()}
        state = torch.get_rng_state()
        found, again = evaluation.measure(run), evaluation.measure(run)
        after = run.student.state_dict()
        same = all(each.equal(after[name]) for name, each in before.items())
        require(same, evaluation, "changes the student's weights")
        require(not run.student.training, evaluation, "leaves the student in training mode")
        drawn = torch.get_rng_state().equal(state)
        require(drawn, evaluation, "draws from torch's global random state: training would differ")
    _check_scores(evaluation, found)
    require(_equal(found, again), evaluation, "measures something else the second time")


def check_logger(logger: Logger) -> None:
    """Assert that a logger receives all events of a run of two steps without raising.

    In a run, a logger that raises is disabled with a warning.
    """
    try:
        with tiny_run([_Heard(logger)]):
            pass
    except KdcoreError as error:
        raise AssertionError(str(error)) from error


def _check_scores(evaluation: Eval, found: object) -> None:
    require(isinstance(found, Mapping), evaluation, f"returned {type(found).__name__}, no mapping")
    assert isinstance(found, Mapping)
    for name, value in found.items():
        require(isinstance(name, str), evaluation, f"names a score {name!r}")
        known = isinstance(value, int | float | str) and not isinstance(value, bool)
        kind = type(value).__name__
        require(known, evaluation, f"gives {name!r} as {kind}, neither a number nor a text")


def _equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return (
        one.keys() == other.keys()
        and all(
            value == other[name] or (value != value and other[name] != other[name])
            for name, value in one.items()
        )
        and not any(isinstance(value, float) and math.isinf(value) for value in one.values())
    )


class _Heard(Component):
    """Forwards events to a logger. Not a logger itself, so that exceptions propagate."""

    name = "heard"
    component_kind = "callback"

    def __init__(self, logger: Logger) -> None:
        self._logger = logger

    def _tell(self, event: str, **arguments: object) -> None:
        from inspect import signature

        heard = getattr(self._logger, event, None)
        if heard is None:
            return
        wanted = {name: arguments[name] for name in signature(heard).parameters}
        try:
            heard(**wanted)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            raise AssertionError(f"{self._logger.name}: raised in {event}: {said}") from error

    @hookimpl
    def kdcore_run_start(self, run: Run) -> None:
        self._tell("kdcore_run_start", run=run)

    @hookimpl
    def kdcore_step_start(self, run: Run, step: int) -> None:
        self._tell("kdcore_step_start", run=run, step=step)

    @hookimpl
    def kdcore_log(self, run: Run, record: Record) -> None:
        self._tell("kdcore_log", run=run, record=record)

    @hookimpl
    def kdcore_scores(self, run: Run, step: int, scores: Mapping[str, float | str]) -> None:
        self._tell("kdcore_scores", run=run, step=step, scores=scores)

    @hookimpl
    def kdcore_checkpoint(self, run: Run, step: int, path: Path) -> None:
        self._tell("kdcore_checkpoint", run=run, step=step, path=path)

    @hookimpl
    def kdcore_run_end(self, run: Run, error: BaseException | None) -> None:
        self._tell("kdcore_run_end", run=run, error=error)

    @hookimpl
    def kdcore_runs_end(self, folders: Sequence[Path]) -> None:
        self._tell("kdcore_runs_end", folders=folders)

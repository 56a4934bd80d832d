"""Check the contract of a component of any kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kdcore.api.component import Component
from kdcore.api.options import iter_components
from kdcore.api.teacher import Teacher
from kdcore.api.tokens import PreparedLoss
from kdcore.objective.teachers import load_teacher
from kdcore.runs.open import iter_batches
from kdcore.testing.claims import require
from kdcore.testing.data import check_data, check_tokenizer
from kdcore.testing.executors import check_executor
from kdcore.testing.losses import check_loss, check_prepared_loss
from kdcore.testing.patches import check_patch
from kdcore.testing.rollouts import check_rollout
from kdcore.testing.runs import tiny_run
from kdcore.testing.selections import check_selection
from kdcore.testing.teachers import check_teacher
from kdcore.testing.watching import check_eval, check_logger


def check(component: Component) -> None:
    """Assert that a component keeps the contract of its kind and restores its own state.

    Losses may be negative, and nonzero at equality. Teachers are loaded in `tiny_run`.
    """
    _CHECKS[component.component_kind](component)
    state = dict(component.state_dict())
    component.load_state_dict(state)
    kept = component.state_dict().keys() == state.keys()
    require(kept, component, "has another state once it took its own back")


def _loss(loss: Any) -> None:
    if isinstance(loss, PreparedLoss):
        check_prepared_loss(loss)
    else:
        check_loss(loss, never_negative=False, zero_at_equality=False)


def _teacher(teacher: Teacher) -> None:
    with tiny_run() as run:
        load_teacher(run, teacher)
        check_teacher(teacher, next(iter(iter_batches(run, run.rows("validation")))))


def _selection(selection: Any) -> None:
    nested = [each for each in iter_components(selection) if isinstance(each, Teacher)]
    with tiny_run() as run:
        for teacher in nested:
            load_teacher(run, teacher)
        check_selection(selection)


_CHECKS: Mapping[str, Callable[[Any], None]] = {
    "data": check_data,
    "tokenizer": check_tokenizer,
    "teacher": _teacher,
    "loss": _loss,
    "selection": _selection,
    "rollout": check_rollout,
    "patch": check_patch,
    "eval": check_eval,
    "logger": check_logger,
    "executor": check_executor,
}

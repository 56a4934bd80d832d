"""Controls: twins of a point that differ in one thing, derived from its checked recipe.

A twin has the same initial weights, rows and order: seed, student, tokenizer, data and [train] are
the point's. The differences are assignments to the point's last stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdcore.guard import needs_teacher
from kdcore.recipe.merge import NONE
from kdcore.recipe.node import Node, Source
from kdcore.recipe.overrides import Assignment

if TYPE_CHECKING:
    from kdcore.api.run import Stage
    from kdcore.plugin.manager import PluginManager
    from kdcore.recipe.recipe import Recipe

Table = dict[str, Any]


class NoControlError(Exception):
    """The control changes nothing in this recipe, or is impossible; the text says why."""


@dataclass(frozen=True)
class Deferred:
    """A control that depends on a measurement of its twin."""

    plain: str | None = None  # another control that must finish first


@dataclass(frozen=True, eq=False)
class Twin:
    """The stage that a control changes: its merged table, and the built stage."""

    recipe: Recipe
    stage_name: str
    stage: Stage
    table: Table

    @classmethod
    def of(cls, recipe: Recipe, stage_name: str) -> Twin:
        """The twin of a checked recipe's stage."""
        (found,) = (each for each in recipe.stages if each.name == stage_name)
        stage = recipe.checked[stage_name]
        return cls(recipe, stage_name, stage, found.table)

    @property
    def host(self) -> PluginManager:
        """The plugin host."""
        return self.recipe.host

    def assign(self, tables: Mapping[str, object]) -> list[Assignment]:
        """Assignments to tables of the stage."""
        prefix = f"stage.{self.stage_name}." if self.stage_name else ""
        source = Source("--set")
        return [Assignment(f"{prefix}{key}", Node.of(v, source)) for key, v in tables.items()]

    def server(self, kind: str, control: str) -> tuple[str, str]:
        """The component of a kind that provides a control, and its option for the measurement."""
        provided = self.host.provided(kind)
        found = {
            name: each.cls.controls[control]
            for name, each in provided.items()
            if control in each.cls.controls
        }
        if len(found) != 1:
            names = ", ".join(found) or "none"
            raise NoControlError(f"one {kind} should serve it, and of those installed {names} does")
        return next(iter(found.items()))


def make(control: str, twin: Twin) -> list[Assignment] | Deferred:
    """The assignments of a control; `Deferred` if they depend on the finished twin.

    Raises NoControlError if it would change nothing.
    """
    return _MAKERS[control](twin)


def no_teacher(twin: Twin) -> list[Assignment]:
    """Without terms and evaluations that need the teacher; if no term is left, with `ce`."""
    return twin.assign(_without_teacher(twin, lambda loss: None))


def no_selection(twin: Twin) -> list[Assignment]:
    """Keeps every token; drops terms on dropped tokens, which would see none."""
    _insist(twin, "selection")
    losses = [
        {key: value for key, value in loss.items() if key != "on"}
        for loss in twin.table["loss"]
        if loss.get("on") != "dropped"
    ]
    if not losses:
        raise NoControlError("all of its losses are on dropped tokens, and none would be left")
    changed = {} if losses == twin.table["loss"] else {"loss": losses}
    return twin.assign({"selection": {"use": NONE}, **changed})


def random_selection(twin: Twin) -> list[Assignment] | Deferred:
    """Keeps as many tokens at random: the configured share, or the one that the twin kept."""
    _insist(twin, "selection")
    selection = twin.table["selection"]
    use, option = twin.server("selection", "random-selection")
    if selection["use"] == use:
        raise NoControlError(f"its selection is {use!r} already")
    return with_share(twin, selection[option]) if option in selection else Deferred()


def with_share(twin: Twin, share: object) -> list[Assignment]:
    """A random selection with this share."""
    use, option = twin.server("selection", "random-selection")
    scope = {"scope": twin.stage.scope} if "scope" in twin.table["selection"] else {}
    return twin.assign({"selection": {"use": use, option: share, **scope}})


def more_steps(twin: Twin) -> Deferred:
    """The plain twin (`no-teacher`, else `no-selection`) for as long as the point itself took."""
    plain = "no-teacher" if "teacher" in twin.table else "no-selection"
    if plain == "no-selection" and "selection" not in twin.table:
        raise NoControlError("it has neither a teacher nor a selection that takes time")
    return Deferred(plain)


def with_steps(twin: Twin, steps: int) -> list[Assignment]:
    """The plain twin with this many steps."""
    plain = more_steps(twin).plain
    changes = no_teacher(twin) if plain == "no-teacher" else no_selection(twin)
    return [*changes, *twin.assign({"train.steps": steps})]


def smoothed(twin: Twin) -> Deferred:
    """Label smoothing with the teacher's mean entropy, in place of the teacher."""
    _insist(twin, "teacher")
    twin.server("loss", "smoothed")
    return Deferred()


def with_smoothing(twin: Twin, smoothing: float) -> list[Assignment]:
    """Each term that needs the teacher with smoothed labels, with its weight and tokens."""
    use, option = twin.server("loss", "smoothed")
    kept = ("weight", "on", "where")

    def smooth(loss: Table) -> Table:
        own = {key: loss[key] for key in kept if key in loss}
        return {"use": use, option: smoothing, **own}

    return twin.assign(_without_teacher(twin, smooth))


def smoothing_of(entropy: float, ids: int) -> float:
    """The smoothing s with this entropy: 1 - s on the label, plus s spread evenly over all ids.

    The entropy grows with s from 0 to log(ids), so bisection finds it.
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        rest, label = middle / ids, 1 - middle + middle / ids
        found = -label * math.log(label) - (ids - 1) * rest * math.log(rest)
        low, high = (middle, high) if found < entropy else (low, middle)
    return round(high, 6)


def steps_for(seconds: float, plain_seconds: float, plain_steps: int) -> int:
    """The number of steps that the plain twin takes in this time."""
    return max(1, round(plain_steps * seconds / plain_seconds))


def _without_teacher(twin: Twin, instead: Callable[[Table], Table | None]) -> dict[str, object]:
    _insist(twin, "teacher")
    table, stage = twin.table, twin.stage
    losses = [
        instead(loss) if needs_teacher(term.loss) else loss
        for loss, term in zip(table["loss"], stage.terms, strict=True)
    ]
    kept = [loss for loss in losses if loss is not None]
    if not kept:
        kept = [{"use": twin.server("loss", "no-teacher")[0]}]
    evals: Sequence[Table] = table.get("eval", [])
    built = stage.evals[len(stage.evals) - len(evals) :]
    still = [one for one, made in zip(evals, built, strict=True) if not needs_teacher(made)]
    changed = {} if len(still) == len(evals) else {"eval": still}
    return {"teacher": {"use": NONE}, "loss": kept, **changed}


def _insist(twin: Twin, key: str) -> None:
    if key not in twin.table:
        raise NoControlError(f"it has no [{key}], so it would change nothing")


_MAKERS: Mapping[str, Callable[[Twin], list[Assignment] | Deferred]] = {
    "no-teacher": no_teacher,
    "no-selection": no_selection,
    "random-selection": random_selection,
    "more-steps": more_steps,
    "smoothed": smoothed,
}

"""The points of a sweep: every combination, read and checked as a recipe, with its controls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from kdcore.errors import Diagnostic, RecipeError, UsageError
from kdcore.recipe.node import Node
from kdcore.recipe.overrides import Assignment
from kdcore.recipe.recipe import read_recipe, wanted_stages
from kdcore.recipe.sweep import Sweep, label_of, read_sweep
from kdcore.sweeps.controls import Deferred, NoControlError, Twin, make

if TYPE_CHECKING:
    from kdcore.plugin.manager import PluginManager
    from kdcore.recipe.recipe import Recipe


@dataclass(frozen=True)
class SweepRequest:
    """The request of a sweep."""

    recipe: str  # as typed
    sets: tuple[str, ...] = ()
    each: tuple[str, ...] = ()
    logs: tuple[str, ...] = ()
    stage: str | None = None  # only this one, and those that it needs


@dataclass(eq=False)
class Point:
    """One combination, or a control of one. `sets` and `control` hold what makes it different."""

    recipe: Recipe  # of a deferred control: that of its twin
    sets: Sequence[str]  # in the syntax of `--set`: everything the recipe's file does not say
    values: dict[str, object]  # of the varied keys
    stages: Sequence[str]  # to run, in order
    ends: Sequence[str]  # those that no other needs
    control: str | None = None
    twin: Point | None = None  # the point that it controls
    plain: Point | None = None  # another control that must finish first
    waits: bool = False  # its recipe depends on the finished twin

    @property
    def label(self) -> str:
        """The point's label."""
        return label_of(self.values, self.control)

    @property
    def seed(self) -> int:
        """The seed of its last stage."""
        return self.recipe.checked[self.ends[-1]].seed


@dataclass
class Points:
    """All points of a sweep, in order, and the recipe's options for executors."""

    all: list[Point]
    options: dict[str, Node]
    notes: dict[str, None] = field(default_factory=dict)


def read_points(asked: SweepRequest, host: PluginManager) -> Points:
    """Read and check all points. Raises RecipeError with all errors, each once."""
    bare = read_recipe(asked.recipe, host, sets=asked.sets, logs=asked.logs)
    executors = host.provided("executor")
    sweep = read_sweep(bare.sweep, asked.each, executors)
    errors = [*sweep.errors, *_set_twice(sweep, asked)]
    if errors:
        raise RecipeError(errors)
    reader = _Reader(asked, host, ["sweep="] if bare.sweep is not None else [])
    for grid in sweep.grids:
        for combination in grid.combinations:
            reader.read(combination, grid.controls)
    if reader.errors:
        raise RecipeError(list(dict.fromkeys(reader.errors)))
    bare.refuse_missing()
    _refuse_same(reader.points)
    return Points(reader.points, sweep.options, reader.notes)


def _set_twice(sweep: Sweep, asked: SweepRequest) -> Iterator[Diagnostic]:
    typed = {each.partition("=")[0].strip(): each for each in asked.sets}
    varied = {key.address: key for grid in sweep.grids for one in grid.combinations for key in one}
    for key in typed.keys() & varied.keys():
        said = f"{key} is set, and the sweep varies it"
        hint = f"leave --set {typed[key]} out, or type --each {typed[key]} for this value alone"
        yield varied[key].value.error(said, hint)


class _Reader:
    """Reads combinations one by one; collects errors and notes."""

    def __init__(self, asked: SweepRequest, host: PluginManager, without: Sequence[str]) -> None:
        self.asked, self.host = asked, host
        self.without = without  # the recipe without [sweep]
        self.points: list[Point] = []
        self.errors: list[Diagnostic] = []
        self.notes: dict[str, None] = {}
        self.failed: set[str] = set()  # controls with a reported error

    def read(self, combination: Sequence[Assignment], controls: Sequence[Node]) -> None:
        """Read a combination, and its controls."""
        try:
            recipe = self._recipe(combination)
            point = self._point(recipe, combination, wanted_stages(recipe, self.asked.stage))
        except RecipeError as error:
            self.errors += error.errors
            return
        self.notes |= dict.fromkeys(recipe.notes)
        self.points.append(point)
        made: dict[str, Point] = {}
        for name in sorted(controls, key=lambda each: each.value == "more-steps"):
            self._control(str(name.value), point, name, made)

    def _control(self, control: str, twin: Point, asked: Node, made: dict[str, Point]) -> None:
        """A control of a point, preceded by the control that it is compared with."""
        if control in made:
            return
        stage = twin.ends[-1]
        try:
            change = make(control, Twin.of(twin.recipe, stage))
        except NoControlError as error:
            if control in self.failed:
                return
            self.failed.add(control)
            said = f"the control {control!r} of {twin.label}: {error}"
            self.errors.append(asked.error(said, "leave it out of controls"))
            return
        if isinstance(change, Deferred):
            if change.plain is not None:
                self._control(change.plain, twin, asked, made)
            plain = made.get(change.plain or "")
            found = replace(twin, ends=[stage], control=control, twin=twin, plain=plain, waits=True)
        else:
            try:
                found = self._twin(control, twin, change)
            except RecipeError as error:
                if control in self.failed:
                    return
                self.failed.add(control)
                said = f"the control {control!r} of {twin.label} is not a recipe: "
                self.errors.append(asked.error(said + error.errors[0].message))
                return
        made[control] = found
        self.points.append(found)

    def _twin(self, control: str, twin: Point, change: Sequence[Assignment]) -> Point:
        recipe = self._recipe([*twin.sets, *change], complete=True)
        stages = wanted_stages(recipe, twin.ends[-1])
        point = self._point(recipe, [*twin.sets, *change], stages, complete=True)
        point.values, point.control, point.twin = twin.values, control, twin
        point.ends = [twin.ends[-1]]
        return point

    def _recipe(self, sets: Sequence[str | Assignment], *, complete: bool = False) -> Recipe:
        before = [] if complete else [*self.asked.sets, *self.without]
        name, logs = self.asked.recipe, self.asked.logs
        return read_recipe(name, self.host, sets=[*before, *sets], logs=logs)

    def _point(
        self,
        recipe: Recipe,
        sets: Sequence[str | Assignment],
        stages: Sequence[str],
        *,
        complete: bool = False,
    ) -> Point:
        before = [] if complete else [*self.asked.sets, *self.without]
        texts = [*before, *(each.text if isinstance(each, Assignment) else each for each in sets)]
        values = {e.address: e.value.plain() for e in sets if isinstance(e, Assignment)}
        needed = {need for each in recipe.stages if each.name in stages for need in each.needs}
        ends = [name for name in stages if name not in needed]
        return Point(recipe, texts, values, stages, ends)


def _refuse_same(points: Sequence[Point]) -> None:
    """Reject points that are the same run, and controls that equal their twin.

    By identity, or by their fully resolved recipes. Controls of several points may be the same run
    if they lack what varies.
    """
    seen: dict[str, Point] = {}
    for point in points:
        if point.waits:
            continue
        contents = _contents(point, point.ends)
        if point.twin is None:
            others = [seen[each] for each in contents if each in seen]
            seen |= dict.fromkeys(contents, point)
        else:
            of_twin = _contents(point.twin, point.ends)
            others = [point.twin] if {*contents} & {*of_twin} else []
        for other in others:
            raise UsageError(
                f"{other.label} and {point.label} are one run: nothing that is trained differs. "
                "Leave one of them out"
            )


def _contents(point: Point, names: Sequence[str]) -> list[str]:
    identities = [point.recipe.identity(name) for name in names]
    resolved = [point.recipe.resolved(point.recipe.checked[name]) for name in names]
    return [" ".join(identities), "\n".join(resolved)]

"""The points of a sweep: every combination read and checked as a recipe, with its controls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from kdcore.errors import Fault, RecipeError, UsageError
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
    """What is swept."""

    recipe: str  # as typed
    sets: tuple[str, ...] = ()
    each: tuple[str, ...] = ()
    logs: tuple[str, ...] = ()
    stage: str | None = None  # only this one, and those that it needs


@dataclass(eq=False)
class Point:
    """One combination, or a control of one. What it differs in is in `sets`, and in `control`."""

    recipe: Recipe  # of a control that waits: that of its twin
    sets: Sequence[str]  # as typed after `--set`, all that the recipe's file does not say
    values: dict[str, object]  # of the keys that the sweep varies
    stages: Sequence[str]  # those that are to be run for it, in order
    ends: Sequence[str]  # the stages of these that no other needs
    control: str | None = None
    twin: Point | None = None  # whose control it is
    plain: Point | None = None  # another control that must be finished before it is known
    waits: bool = False  # its recipe is known once the twin is finished

    @property
    def label(self) -> str:
        """How it is called."""
        return label_of(self.values, self.control)

    @property
    def seed(self) -> int:
        """Of its last stage."""
        return self.recipe.checked[self.ends[-1]].seed


@dataclass
class Points:
    """Every point of a sweep, in order, and what the recipe says of executors."""

    all: list[Point]
    options: dict[str, Node]
    notes: dict[str, None] = field(default_factory=dict)


def read_points(asked: SweepRequest, host: PluginManager) -> Points:
    """Read and check all of them. Raises RecipeError with every fault of every point, once."""
    bare = read_recipe(asked.recipe, host, sets=asked.sets, logs=asked.logs)
    executors = host.provided("executor")
    sweep = read_sweep(bare.sweep, asked.each, executors)
    faults = [*sweep.faults, *_set_twice(sweep, asked)]
    if faults:
        raise RecipeError(faults)
    reader = _Reader(asked, host, ["sweep="] if bare.sweep is not None else [])
    for grid in sweep.grids:
        for combination in grid.combinations:
            reader.read(combination, grid.controls)
    if reader.faults:
        raise RecipeError(list(dict.fromkeys(reader.faults)))
    bare.refuse_missing()
    _refuse_same(reader.points)
    return Points(reader.points, sweep.options, reader.notes)


def _set_twice(sweep: Sweep, asked: SweepRequest) -> Iterator[Fault]:
    typed = {each.partition("=")[0].strip(): each for each in asked.sets}
    varied = {key.address: key for grid in sweep.grids for one in grid.combinations for key in one}
    for key in typed.keys() & varied.keys():
        said = f"{key} is set, and the sweep varies it"
        hint = f"leave --set {typed[key]} out, or type --each {typed[key]} for this value alone"
        yield varied[key].value.fault(said, hint)


class _Reader:
    """Reads one combination after another; faults and notes are gathered."""

    def __init__(self, asked: SweepRequest, host: PluginManager, without: Sequence[str]) -> None:
        self.asked, self.host = asked, host
        self.without = without  # the recipe's own [sweep]
        self.points: list[Point] = []
        self.faults: list[Fault] = []
        self.notes: dict[str, None] = {}
        self.failed: set[str] = set()  # controls whose fault is told

    def read(self, combination: Sequence[Assignment], controls: Sequence[Node]) -> None:
        """A combination, and its controls."""
        try:
            recipe = self._recipe(combination)
            point = self._point(recipe, combination, wanted_stages(recipe, self.asked.stage))
        except RecipeError as error:
            self.faults += error.faults
            return
        self.notes |= dict.fromkeys(recipe.notes)
        self.points.append(point)
        made: dict[str, Point] = {}
        for name in sorted(controls, key=lambda each: each.value == "more-steps"):
            self._control(str(name.value), point, name, made)

    def _control(self, control: str, twin: Point, asked: Node, made: dict[str, Point]) -> None:
        """A control of a point, and before it the one that it is measured against."""
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
            self.faults.append(asked.fault(said, "leave it out of controls"))
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
                said = f"the control {control!r} of {twin.label} is no recipe: "
                self.faults.append(asked.fault(said + error.faults[0].message))
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
        before = [] if complete else [*self.without, *self.asked.sets]
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
        before = [] if complete else [*self.without, *self.asked.sets]
        texts = [*before, *(each.text if isinstance(each, Assignment) else each for each in sets)]
        values = {e.address: e.value.plain() for e in sets if isinstance(e, Assignment)}
        needed = {need for each in recipe.stages if each.name in stages for need in each.needs}
        ends = [name for name in stages if name not in needed]
        return Point(recipe, texts, values, stages, ends)


def _refuse_same(points: Sequence[Point]) -> None:
    """Two points that are one run, and controls that are their twin's.

    By their identities, or by all that they resolve to. Controls of several points may be one run,
    where what varies is what they lack.
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

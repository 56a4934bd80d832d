"""`[sweep]` and `--each`: the varied values, and all their combinations."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from kdcore.errors import Diagnostic, did_you_mean
from kdcore.recipe.node import Node
from kdcore.recipe.overrides import Assignment, varied

CONTROLS = ("no-teacher", "no-selection", "random-selection", "more-steps", "smoothed")
MEASURED = ("random-selection", "more-steps", "smoothed")  # their values may be measured
_NAME = "controls"


@dataclass(frozen=True, eq=False)
class Grid:
    """One `[sweep]` table: its combinations, and the controls of each."""

    combinations: Sequence[Sequence[Assignment]]
    controls: Sequence[Node]  # names, with their places

    @property
    def count(self) -> int:
        """The number of runs."""
        return len(self.combinations) * (1 + len(self.controls))


@dataclass
class Sweep:
    """All variations by recipe and command line. Several tables are the union of their grids."""

    grids: list[Grid] = field(default_factory=list)
    options: dict[str, Node] = field(default_factory=dict)  # of executors, by name
    errors: list[Diagnostic] = field(default_factory=list)

    @property
    def count(self) -> int:
        """The number of runs."""
        return sum(grid.count for grid in self.grids)


def read_sweep(written: Node | None, eaches: Sequence[str], executors: Collection[str]) -> Sweep:
    """The grids of a recipe's `[sweep]`. `--each` replaces the same key there."""
    found = Sweep()
    typed = varied(eaches)
    for key, assignments in typed.items():
        if key.partition(".")[0] == "sweep":
            said = f"{key} is part of the sweep itself, which a sweep cannot vary"
            hint = f"type --each {key.partition('.')[2] or 'K'}=a,b for a key of the recipe"
            found.errors.append(assignments[0].value.error(said, hint))
    for table in _tables(written, found.errors):
        varies: dict[str, Sequence[Assignment]] = {}
        controls: Sequence[Node] = ()
        for key, value in table.table.items():
            if key == _NAME:
                controls = _controls(value, found.errors)
            elif key in executors and value.is_table:
                found.options[key] = value
            else:
                varies |= _varied(key, value, found.errors)
        choices = {**varies, **typed}.values()
        found.grids.append(Grid(list(product(*choices)), controls))
    if not found.grids:
        found.grids.append(Grid(list(product(*typed.values())), ()))
    return found


def _tables(written: Node | None, errors: list[Diagnostic]) -> Sequence[Node]:
    if written is None:
        return []
    tables = written.items if written.is_list else [written]
    wrong = [each for each in tables if not each.is_table]
    hint = "write [sweep] and below it seed = [0, 1, 2]"
    errors += [each.error("sweep should be a table of lists", hint) for each in wrong]
    return [each for each in tables if each.is_table]


def _controls(value: Node, errors: list[Diagnostic]) -> Sequence[Node]:
    if not value.is_list:
        errors.append(value.error(f"controls should be a list, such as [{CONTROLS[0]!r}]"))
    for name in value.items:
        if name.value not in CONTROLS:
            near = did_you_mean(str(name.value), CONTROLS)
            hint = f"there are: {', '.join(CONTROLS)}"
            errors.append(name.error(f"there is no control {name.value!r}{near}", hint))
    return [name for name in value.items if name.value in CONTROLS]


def _varied(
    key: str, value: Node, errors: list[Diagnostic]
) -> Iterator[tuple[str, Sequence[Assignment]]]:
    """Each key with its values: `"loss.kl.use" = [...]`, or the same as nested tables."""
    if value.is_table:
        for inner, each in value.table.items():
            yield from _varied(f"{key}.{inner}", each, errors)
    elif value.is_list and value.items:
        yield key, [Assignment(key, each) for each in value.items]
    else:
        hint = "a sweep varies it; what all runs share belongs in the recipe itself"
        errors.append(value.error(f"{key} should be a list of values", hint))


def label_of(values: Mapping[str, object], control: str | None = None) -> str:
    """The label of a point: `seed=1 loss.kl.use=kl no-teacher`."""
    said = [f"{key}={value}" for key, value in values.items()]
    return " ".join([*said, *([control] if control else [])]) or "as written"

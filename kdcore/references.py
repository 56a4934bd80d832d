"""`"@NAME"`: a stage that another stage names, and the order that follows from it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from kdcore.contract import suggestion
from kdcore.errors import Fault
from kdcore.written import Written

_REFERENCE = re.compile(r"@(\w[\w.-]*)")


def references(value: Written) -> Iterator[tuple[str, Written]]:
    """The stages that a table names, each with the value that names it."""
    for inner in (*value.table.values(), *value.items):
        yield from references(inner)
    match = _REFERENCE.fullmatch(value.value) if isinstance(value.value, str) else None
    if match:
        yield match[1], value


def replace_references(value: Written, new: Callable[[str], str]) -> Written:
    """The same with `new(NAME)` in place of every `"@NAME"`."""
    if value.is_table:
        inner = {key: replace_references(each, new) for key, each in value.table.items()}
        return value.with_children(inner)
    if value.is_list:
        return value.with_children([replace_references(each, new) for each in value.items])
    match = _REFERENCE.fullmatch(value.value) if isinstance(value.value, str) else None
    return value.with_children(new(match[1])) if match else value


def in_order(stages: Mapping[str, Written], faults: list[Fault]) -> list[tuple[str, list[str]]]:
    """The stages with the stages that they name, in an order to run them; else in file order."""
    needs: dict[str, dict[str, Written]] = {}
    for name, stage in stages.items():
        named = dict(references(stage))
        faults += [_unknown(n, named[n], stages) for n in named if n not in stages]
        needs[name] = {n: value for n, value in named.items() if n in stages}
    order: list[str] = []
    while len(order) < len(needs):
        waiting = [name for name in needs if name not in order]
        ready = [name for name in waiting if needs[name].keys() <= {*order}]
        if not ready:
            faults.append(_circle(waiting[0], needs, order))
            return [(name, [*needs[name]]) for name in (*order, *waiting)]
        order.append(ready[0])
    return [(name, [*needs[name]]) for name in order]


def _unknown(name: str, value: Written, stages: Mapping[str, Written]) -> Fault:
    if "" in stages:
        return value.fault(f"'@{name}' names a stage, and this recipe has no stages")
    message = f"no stage is called {name!r}{suggestion(name, stages)}"
    return value.fault(message, f"there are: {', '.join(stages)}")


def _circle(start: str, needs: Mapping[str, Mapping[str, Written]], done: list[str]) -> Fault:
    """A fault that shows who waits for whom; every stage that is not done waits for another."""
    path = [start]
    while path[-1] not in path[:-1]:
        path.append(next(name for name in needs[path[-1]] if name not in done))
    circle = path[path.index(path[-1]) :]
    value = needs[circle[-2]][circle[-1]]
    if len(circle) == 2:
        return value.fault(f"the stage {circle[0]!r} names itself")
    return value.fault(f"stages wait for one another: {' needs '.join(circle)}")

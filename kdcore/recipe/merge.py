"""Merging of tables, references between stages, and run identities."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from heapq import heappop, heappush

from kdcore.api.train_options import rivals_of
from kdcore.errors import Diagnostic, did_you_mean
from kdcore.recipe.node import Node

NONE = "none"
"""`use = "none"` removes what is inherited."""

_NAMING = ("use", "model_type")  # tables with different values of these have different options


def merge_recipes(base: Node, over: Node) -> Node:
    """Merge `over` onto `base`: whole recipes, or a stage onto the top level."""
    merged = dict(base.table)
    for key, value in over.table.items():
        if key not in merged:
            merged[key] = value
        elif key == "stage":
            merged[key] = _merge_stages(merged[key], value)
        else:
            merged[key] = merge(merged[key], value, key)
    return over.with_children(merged)


def _merge_stages(base: Node, over: Node) -> Node:
    stages = dict(base.table)
    for name, stage in over.table.items():
        stages[name] = merge_recipes(stages[name], stage) if name in stages else stage
    return over.with_children(stages)


def merge(base: Node, over: Node, name: str = "") -> Node:
    """Tables merge; other values, and tables with another `use`, are replaced.

    `name` is that of an engine table: keys that exclude one of `over` are not inherited.
    """
    if not (base.is_table and over.is_table) or over.whole or _is_another(base, over):
        return over
    gone = {rival for key in over.table for rival in rivals_of(name, key)} - over.table.keys()
    merged = {key: value for key, value in base.table.items() if key not in gone}
    for key, value in over.table.items():
        merged[key] = merge(merged[key], value) if key in merged else value
    return over.with_children(merged)


def _is_another(base: Node, over: Node) -> bool:
    return any(
        key in base.table and key in over.table and base.table[key].value != over.table[key].value
        for key in _NAMING
    )


def without_none(value: Node) -> Node:
    """The same without tables that `use = "none"` removes."""
    if value.is_table:
        kept = {key: each for key, each in value.table.items() if each.use != NONE}
        return value.with_children({key: without_none(each) for key, each in kept.items()})
    if value.has_items:
        return value.with_children([without_none(v) for v in value.items if v.use != NONE])
    return value


_REFERENCE = re.compile(r"@(\w[\w.-]*)")


def references(value: Node) -> Iterator[tuple[str, Node]]:
    """The stages that a table refers to, each with the referring value."""
    for inner in value.children:
        yield from references(inner)
    match = _REFERENCE.fullmatch(value.value) if isinstance(value.value, str) else None
    if match:
        yield match[1], value


def replace_references(value: Node, new: Callable[[str], str]) -> Node:
    """Replace every `"@NAME"` by `new(NAME)`."""
    if value.is_table:
        inner = {key: replace_references(each, new) for key, each in value.table.items()}
        return value.with_children(inner)
    if value.has_items:
        return value.with_children([replace_references(each, new) for each in value.items])
    match = _REFERENCE.fullmatch(value.value) if isinstance(value.value, str) else None
    return value.with_children(new(match[1])) if match else value


def in_order(stages: Mapping[str, Node], errors: list[Diagnostic]) -> list[tuple[str, list[str]]]:
    """The given stages and those they refer to, in topological order; ties in file order."""
    needs: dict[str, dict[str, Node]] = {}
    for name, stage in stages.items():
        named = dict(references(stage))
        errors += [_unknown(n, named[n], stages) for n in named if n not in stages]
        needs[name] = {n: value for n, value in named.items() if n in stages}
    order = _ready_first(needs)
    if len(order) < len(needs):
        done = {*order}
        waiting = [name for name in needs if name not in done]
        errors.append(_circle(waiting[0], needs, done))
        order += waiting
    return [(name, [*needs[name]]) for name in order]


def _ready_first(needs: Mapping[str, Collection[str]]) -> list[str]:
    """Names after those that they need, as early as possible; without those in cycles."""
    names = list(needs)
    place = {name: n for n, name in enumerate(names)}
    missing = {name: len(each) for name, each in needs.items()}
    waiting: dict[str, list[str]] = {name: [] for name in names}
    for name, each in needs.items():
        for need in each:
            waiting[need].append(name)
    ready = [place[name] for name in names if not missing[name]]  # ascending: a heap
    order: list[str] = []
    while ready:
        order.append(names[heappop(ready)])
        for name in waiting[order[-1]]:
            missing[name] -= 1
            if not missing[name]:
                heappush(ready, place[name])
    return order


def _unknown(name: str, value: Node, stages: Mapping[str, Node]) -> Diagnostic:
    if "" in stages:
        said = f"'@{name}' names a stage, and this recipe has no stages"
        return value.error(said, f"name a folder or a model of the hub, or add [stage.{name}]")
    message = f"no stage is called {name!r}{did_you_mean(name, stages)}"
    return value.error(message, f"there are: {', '.join(stages)}")


def _circle(
    start: str, needs: Mapping[str, Mapping[str, Node]], done: Collection[str]
) -> Diagnostic:
    """An error that shows the cycle; every remaining stage waits for another."""
    path = [start]
    while path[-1] not in path[:-1]:
        path.append(next(name for name in needs[path[-1]] if name not in done))
    circle = path[path.index(path[-1]) :]
    value = needs[circle[-2]][circle[-1]]
    if len(circle) == 2:
        return value.error(f"the stage {circle[0]!r} names itself", _ELSEWHERE)
    return value.error(f"stages depend on each other: {' needs '.join(circle)}", _ELSEWHERE)


_ELSEWHERE = "name a stage that comes before it, a folder or a model of the hub"


_OF_RECIPE = ("name", "requires", "trust_remote_code", "log", "eval", "resources")

_OF_TRAIN = (
    "micro_batch",
    "chunk",
    "compile",
    "compile_trunk",
    "cuda_graphs",
    "checkpointing",
    "shard",
    "workers",
    "non_finite",
    "log_every",
    "eval_every",
    "eval_seed",
    "save_every",
    "save_keep",
)

_MEASURED = ("eval_every", "eval_seed")


def identity(table: Node, tokenizer_data: Node | None, identity_of: Callable[[str], str]) -> str:
    """Eight hexadecimal digits of the merged table as written; independent of key order.

    `"@NAME"` counts as that stage's own identity, so its name does not matter. `tokenizer_data` is
    given if it differs from the stage's data.
    """
    content = [identity_fields(_by_identity(table, identity_of))]
    if tokenizer_data is not None:
        content.append(_by_identity(tokenizer_data, identity_of))
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _by_identity(table: Node, identity_of: Callable[[str], str]) -> dict[str, object]:
    return replace_references(table, lambda name: f"@{identity_of(name)}").plain_table()


def identity_fields(table: Mapping[str, object]) -> dict[str, object]:
    """A stage's table without keys that cannot change its result; always with the seed."""
    counts = {"seed": 0, **{key: each for key, each in table.items() if key not in _OF_RECIPE}}
    train, selection = counts.get("train"), counts.get("selection")
    if isinstance(train, dict):
        measured = "keep_best" in train  # measurements then decide which weights are final
        counts["train"] = {
            key: value
            for key, value in train.items()
            if key not in _OF_TRAIN
            or (key == "micro_batch" and _ranks_within(selection))
            or (key in _MEASURED and measured)
        }
        if measured:
            counts["eval"] = table.get("eval", [])
    return counts


def _ranks_within(selection: object) -> bool:
    """Whether a selection ranks within micro-batches, so that their size changes the result."""
    return isinstance(selection, dict) and selection.get("scope") == "micro_batch"

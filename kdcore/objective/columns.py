"""The document columns that a recipe requires, checked against its documents."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from kdcore.api.component import Component
from kdcore.api.loss import Term
from kdcore.api.observers import Eval
from kdcore.api.run import Stage
from kdcore.data.columns import fingerprint_of
from kdcore.data.streaming import Stream
from kdcore.data.where import SOURCE, Columns, Value, Where, value_of, values_in
from kdcore.errors import RunError
from kdcore.guard import call_checked

if TYPE_CHECKING:
    from kdcore.api.run import Run

_log = logging.getLogger("kdcore")
_MOST = 10  # values listed in a message


def required_columns(
    terms: Sequence[Term], components: Sequence[Component]
) -> Iterator[tuple[str, Where]]:
    """Each requirement: its owner in words, and its columns with values; no values: any."""
    for term in terms:
        if term.where:
            yield f"the loss {term.label!r}", term.where
    for component in components:
        for where in call_checked(component, "reads_columns", of=Sequence):
            yield f"the {component.component_kind} {component.name!r}", where


def check_columns(run: Run) -> None:
    """Raise RunError for required columns and values that no training document has.

    For a stream, checks the first rows and only warns.
    """
    stage = run.recipe
    trained = [one for one in stage.components() if not isinstance(one, Eval)]
    required = list(required_columns(stage.terms, trained))
    if not required:
        return
    rows = run.laid("train")
    streamed = isinstance(rows, Stream)
    first = rows.first_window() if isinstance(rows, Stream) else rows
    known = _values(first.columns(), {name for _, where in required for name in where})
    for problem in _errors(required, known, stage):
        if not streamed:
            raise RunError(problem)
        _log.warning("%s, in the first %s rows", problem, f"{len(first):,}")


def _values(columns: Iterable[Columns], names: set[str]) -> Mapping[str, set[Value]]:
    found: dict[str, set[Value]] = {name: set() for name in names}
    for row in columns:
        for name, values in found.items():
            value = value_of(row, name)
            if value is not None:
                values.add(value)
    return found


def _errors(
    required: Sequence[tuple[str, Where]], known: Mapping[str, set[Value]], stage: Stage
) -> Iterator[str]:
    writes = stage.rollout is not None
    for who, where in required:
        for name, given in where.items():
            there = known[name] | ({"data"} if name == SOURCE else set())
            if name == SOURCE and writes:  # sources of generated rows are not known yet
                continue
            if not there:
                yield (
                    f"{who} needs the column {name!r}, and no document of data "
                    f"{stage.data.name!r} has it; keep_columns in [data] keeps columns of files"
                )
            for value in values_in(given) if there else ():
                if value not in there:
                    yield (
                        f"{who} asks for {name} = {json.dumps(value, ensure_ascii=False)}, and no "
                        f"document of data {stage.data.name!r} has that; there are: {_some(there)}"
                    )


def _some(values: set[Value]) -> str:
    ordered = sorted(values, key=lambda value: (isinstance(value, str), value))
    shown = [json.dumps(value, ensure_ascii=False) for value in ordered[:_MOST]]
    more = f" and {len(ordered) - _MOST} more" if len(ordered) > _MOST else ""
    return f"{', '.join(shown)}{more}"


def columns_fingerprint(run: Run) -> str | None:
    """A hash of the training documents' values in the columns that affect training.

    None where no column does. A stream's columns are covered by its data's fingerprint.
    """
    stage = run.recipe
    trained = [one for one in stage.components() if not isinstance(one, Eval)]
    required = required_columns(stage.terms, trained)
    names = {name for _, where in required for name in where}
    return fingerprint_of(run.laid("train").columns(), names) if names else None

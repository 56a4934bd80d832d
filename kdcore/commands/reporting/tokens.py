"""Coloured rows of a step for runs with a selection, and how the losses of its tokens changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kdcore.commands.rows.html import rows_html
from kdcore.commands.rows.page import ShownRow, counted
from kdcore.commands.rows.tokens import Seen, page_of, seen_by
from kdcore.errors import KdcoreError
from kdcore.plugin.manager import PluginManager
from kdcore.runs.folder import CHECKPOINTS

CHANGE = 0.2  # nats by which a loss must change to count as risen or fallen
CLASSES = ("H→L", "L→L", "L→H", "H→H")
_LETTERS = 120_000  # characters of a run's rows on the page


@dataclass(frozen=True)
class Coloured:
    """The coloured rows of one run, or a reason in place of them."""

    run: str
    facts: Sequence[tuple[str, str]] = ()
    rows: str = ""  # HTML
    classes: Sequence[tuple[str, str, str]] = ()  # class, count of valid, count of kept tokens
    between: tuple[int, int] | None = None  # the steps that the classes compare
    missing: str = ""


def coloured(folder: Path, host: PluginManager, count: int) -> Coloured:
    """Rows of the step that the last weights would choose in; loads the run's weights."""
    try:
        steps = _checkpoints(folder)
        seen, of_step = seen_by(folder, host)
        page = page_of(folder, seen, of_step, count)
        rows = _as_many_as_fit(page.rows)
        made = Coloured(folder.name, page.facts, rows)
        earlier = [step for step in steps if step < seen[0].at]
        if not earlier:
            return replace(made, missing="the run keeps one set of weights, so no change is known")
        before, _ = seen_by(folder, host, earlier[:1], of_step)
        return replace(
            made,
            classes=classes_of(before[0], seen[0]),
            between=(before[0].at, seen[0].at),
        )
    except (KdcoreError, OSError) as error:
        return Coloured(folder.name, missing=str(error))


def _checkpoints(folder: Path) -> list[int]:
    found = (path.name.removeprefix("step-") for path in (folder / CHECKPOINTS).glob("step-*"))
    return sorted(int(name) for name in found if name.isdigit())


def _as_many_as_fit(rows: Sequence[ShownRow]) -> str:
    """A page with many long rows would be too large to open."""
    made = ""
    for row in rows:
        more = rows_html([row])
        if made and len(made) + len(more) > _LETTERS:
            break
        made += more
    return made


def classes_of(before: Seen, after: Seen) -> list[tuple[str, str, str]]:
    """RHO-1's four classes of the valid tokens of a step, counted among all and kept ones."""
    valid = np.concatenate([row.valid for row in after.rows])
    first, last = (
        np.concatenate([row.nll for row in each.rows])[valid] for each in (before, after)
    )
    kept = np.concatenate([row.kept for row in after.rows])[valid]
    found = four_classes(first, last)
    return [
        (
            name,
            counted(int((found == n).sum()), len(found)),
            counted(int((found[kept] == n).sum()), int(kept.sum())),
        )
        for n, name in enumerate(CLASSES)
    ]


def four_classes(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """The index in CLASSES of each token, by its loss under earlier and later weights.

    As in RHO-1 (Lin et al., 2024): fallen or risen by more than 0.2 nats, otherwise persistent; low
    if the later loss is at most the mean over all tokens.
    """
    change = last - first
    persistent = np.where(last <= last.mean(), 1, 3)
    found: np.ndarray = np.where(change < -CHANGE, 0, np.where(change > CHANGE, 2, persistent))
    return found

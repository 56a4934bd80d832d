"""`kdcore show --tokens`: the state of each token of a training step, under some weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdcore.analysis.rows import SelectedRow, selected_rows
from kdcore.api.run import Stage
from kdcore.cli.main import plugin_manager
from kdcore.commands.rows.looking import (
    borders,
    json_row,
    never_valid,
    states_of,
    tell_pages,
    tokens_of,
)
from kdcore.commands.rows.options import Looking
from kdcore.commands.rows.page import Page, Shown, ShownRow, Side, State, counted
from kdcore.errors import UsageError
from kdcore.plugin.manager import PluginManager
from kdcore.runs.folder import find_run
from kdcore.runs.open import begun, open_stage
from kdcore.runs.reading.facts import component
from kdcore.runs.reading.metrics import read_metrics
from kdcore.terminal.formatting import value
from kdcore.training.run_state import RunState

_ROWS = 4


@dataclass(frozen=True, eq=False)
class Seen:
    """The rows of a training step under one set of weights."""

    run: RunState
    at: int  # the step of the weights
    rows: Sequence[SelectedRow]  # of the whole step

    @property
    def label(self) -> str:
        """Which weights."""
        return f"step {self.at}"

    def total(self, name: str) -> int:
        """The number of valid or kept tokens."""
        return sum(int(getattr(row, name).sum()) for row in self.rows)

    def mean_nll(self) -> float:
        """Over the valid tokens, in nats."""
        return float(np.mean(np.concatenate([row.nll[row.valid] for row in self.rows])))

    def threshold(self) -> float | None:
        """The lowest score that was kept; None without a ranking."""
        kept = np.concatenate([row.score[row.kept] for row in self.rows])
        return None if np.isnan(kept).all() else float(np.nanmin(kept))

    def side(self, n: int) -> Side:
        """A row under these weights."""
        row = self.rows[n]
        numbers = (row.nll.tolist(), row.score.tolist())
        kept = counted(int(row.kept.sum()), int(row.valid.sum()))
        tokens = tokens_of(self.run.tokenizer, row, _states(row), *numbers)
        return Side(f"{self.label}: kept {kept}", tokens)


def show_tokens(looking: Looking) -> None:
    """Rows of a training step, with kept, dropped and never valid tokens."""
    if len(looking.names) != 1:
        raise UsageError("show --tokens takes one run, such as: kdcore show --tokens last")
    folder = find_run(looking.names[0], looking.out)
    host: PluginManager = plugin_manager([*looking.plugins])
    seen, of_step = seen_by(folder, host, looking.steps, looking.of_step, looking.sets)
    page = page_of(folder, seen, of_step, _ROWS if looking.rows is None else looking.rows)
    tell_pages([page], looking, _objects(page, seen, of_step))


def seen_by(
    folder: Path,
    host: PluginManager,
    steps: Sequence[int] = (),
    of_step: int | None = None,
    sets: Sequence[str] = (),
) -> tuple[list[Seen], int]:
    """The rows of a training step under the weights after each of `steps`, and its number.

    By default the final weights, or the newest, and the step that they chose in.
    """
    seen: list[Seen] = []
    for step in _chosen(steps):
        run = open_stage(begun(folder, host, step=step, sets=sets, evals=[]))
        at = run.step or _last_step(folder)
        of_step = _rows_of(folder, of_step, at, run.steps or at)
        seen.append(Seen(run, at, selected_rows(run, of_step)))
    assert of_step is not None
    return seen, of_step


def _chosen(steps: Sequence[int]) -> list[int | None]:
    """Each checkpoint once; None: the final weights, or the newest."""
    return [*dict.fromkeys(steps)] or [None]


def _last_step(folder: Path) -> int:
    """Of a finished run without checkpoints."""
    return max((int(str(line["step"])) for line in read_metrics(folder)), default=0)


def _rows_of(folder: Path, asked: int | None, at: int, steps: int) -> int:
    """The training step to show: by default the one that the weights chose in."""
    if asked is not None and asked > steps:
        raise UsageError(f"--of-step {asked}: {folder} has {steps} training steps")
    return min(at + 1, steps) if asked is None else asked


def _states(row: SelectedRow) -> list[State]:
    return states_of(row, {"kept": row.kept, "dropped": row.valid & ~row.kept})


def page_of(folder: Path, seen: Sequence[Seen], of_step: int, count: int) -> Page:
    """Some rows of the step, with their legend."""
    first = seen[0]
    return Page(
        title=folder.name,
        facts=list(_facts(seen, of_step, count)),
        legend=_LEGEND,
        lines=[list(_numbers(each)) for each in seen],
        notes=[*_compared(seen), *never_valid(s for row in first.rows for s in _states(row))],
        rows=[_row(seen, n) for n in range(min(count, len(first.rows)))],
    )


def _facts(seen: Sequence[Seen], of_step: int, count: int) -> Iterator[tuple[str, str]]:
    rows = len(seen[0].rows)
    shown = f"the first {count} of the " if count < rows else "all "
    yield "rows", f"{shown}{rows} of training step {of_step}"
    yield "weights", _weights([each.at for each in seen], of_step)
    yield "keeps", _keeps(seen[0].run.recipe)


def _weights(after: Sequence[int], of_step: int) -> str:
    said = "after step " + " and after step ".join(map(str, after))
    return f"{said}: those that step {of_step} was taken with" if [of_step - 1] == after else said


def _keeps(stage: Stage) -> str:
    selection = stage.table.get("selection")
    if not isinstance(selection, dict):
        return "every valid token: the run has no selection"
    said = f"{component(selection)}, of the tokens of the whole step"
    if stage.scope == "micro_batch":
        said += "; the run chose in each micro-batch by itself, which is not shown"
    return said


_LEGEND: Sequence[tuple[Shown | None, str]] = [
    (None, "the whole step"),
    ("kept", "kept"),
    ("dropped", "dropped"),
    ("never", "never valid"),
    (None, "threshold"),
    (None, "mean nll"),
]


def _numbers(seen: Seen) -> Iterator[str]:
    valid, kept = seen.total("valid"), seen.total("kept")
    yield f"by {seen.label}"
    yield counted(kept, valid)
    yield counted(valid - kept, valid)
    yield f"{sum(len(row.input_ids) for row in seen.rows) - valid:,}"
    yield value(seen.threshold())
    yield value(seen.mean_nll())


def _compared(seen: Sequence[Seen]) -> Iterator[str]:
    """How far the sets of weights agree."""
    if len(seen) < 2:
        return
    kept = np.stack([np.concatenate([row.kept for row in each.rows]) for each in seen])
    valid = seen[0].total("valid")
    differ = int((kept.any(0) & ~kept.all(0)).sum())
    only = ", ".join(
        f"{int((kept[n] & ~np.delete(kept, n, 0).any(0)).sum()):,} kept only by {each.label}"
        for n, each in enumerate(seen)
    )
    yield f"They differ in {counted(differ, valid)} of the valid tokens: {only}."


def _row(seen: Sequence[Seen], n: int) -> ShownRow:
    row, sides = seen[0].rows[n], [each.side(n) for each in seen]
    title = f"row {n + 1} of {len(seen[0].rows)}, {len(row.input_ids):,} tokens"
    if len(seen) == 1:
        title += f", kept {sides[0].label.partition(': kept ')[2]} of the valid ones"
    return ShownRow(title, borders(row), sides)


def _objects(page: Page, seen: Sequence[Seen], of_step: int) -> Iterator[dict[str, Any]]:
    """A row under each set of weights."""
    for n, row in enumerate(page.rows):
        for each, side in zip(seen, row.sides, strict=True):
            about = {"run": page.title, "weights_after_step": each.at, "of_step": of_step}
            documents = (each.rows[n].document + 1).tolist()
            yield {
                **about,
                "row": n + 1,
                "threshold": each.threshold(),
                **json_row(side.tokens),
                "document": documents,
            }

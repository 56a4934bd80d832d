"""Output of grouped runs: tables, CSV, JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kdcore.commands.comparison.groups import Group, differing, grouped, scores_of, summarize_run
from kdcore.commands.fitting import Column, Fitting
from kdcore.runs.folder import failure_of
from kdcore.runs.reading.metrics import is_part
from kdcore.terminal.formatting import value

_TITLES = {"nll": "validation loss", "bits_per_byte": "bits per byte"}
# The exponential of the loss. CSV and JSON have it, and scores that are parts of others.
_REDUNDANT = ("perplexity",)


def comparison(folders: Sequence[Path]) -> Fitting:
    """The groups of runs: mean and spread of the loss, bits per byte and all other scores."""
    return _table(grouped([summarize_run(folder) for folder in folders]))


def comparison_in_full(folders: Sequence[Path]) -> list[RenderableType]:
    """The comparison, followed by the differing keys whose values are not in it."""
    groups = grouped([summarize_run(folder) for folder in folders])
    keys = differing(groups)
    shown = {key for telling in telling(groups) for key in telling}
    parts: list[RenderableType] = [_table(groups), *_notes_on_rows(groups)]
    if not shown >= set(keys):
        parts += [Text(), _differences(groups, keys)]
    return [*parts, *reasons([run.folder for group in groups for run in group.runs])]


def reasons(folders: Sequence[Path]) -> list[RenderableType]:
    """One line per run that was stopped or failed, with the reason."""
    found = [(folder.name, failure_of(folder)) for folder in folders]
    lines = [Text.assemble((f"{name}  ", "bold"), why) for name, why in found if why]
    return [Text(), *lines] if lines else []


def _notes_on_rows(groups: Sequence[Group]) -> list[RenderableType]:
    """A warning if runs were measured on different held-out rows."""
    runs = [run for group in groups for run in group.runs]
    drawn = [run for run in runs if run.rows_drawn_by is not None]
    if len({run.rows_drawn_by for run in drawn}) < 2:
        return []
    old = sum(run.is_old for run in drawn)
    why = f"; {old} of these runs are older than train.eval_seed" if old else ""
    return [Text(f"the held-out rows were not drawn by one seed{why}", "yellow")]


def _table(groups: Sequence[Group]) -> Fitting:
    several = any(len(group.runs) > 1 for group in groups)
    every = scores_of(groups)
    scores = [name for name in every if name not in _REDUNDANT and not is_part(name, every)]
    columns = [Column("run", labels(groups), len(scores) + 2, is_number=False)]
    if several:
        columns.append(Column("n", [str(len(group.runs)) for group in groups], len(scores) + 1))
    for number, score in enumerate(scores):
        cells = [_with_spread(group, score) for group in groups]
        columns.append(Column(_TITLES.get(score, score), cells, len(scores) - number))
    return Fitting(columns)


def _with_spread(group: Group, score: str) -> str:
    if all(math.isnan(each) for each in group.values(score)):
        return "-"
    spread = group.spread(score)
    mean = value(group.mean(score))
    decimals = len(mean.partition(".")[2])  # the spread gets as many, for alignment
    return mean if spread is None else f"{mean} ± {spread:.{decimals}f}"


def labels(groups: Sequence[Group]) -> list[str]:
    """Group names, without their common prefix, and with whatever distinguishes duplicates."""
    start = _shared_start([group.name for group in groups])
    return [
        "  ".join([group.name[start:], *(f"{key}={shown}" for key, shown in telling.items())])
        for group, telling in zip(groups, telling(groups), strict=True)
    ]


def _shared_start(names: Sequence[str]) -> int:
    """The length of the recipe's name, if all are stages of one recipe."""
    recipes = {name.partition(".")[0] for name in names}
    return len(recipes.pop()) + 1 if len(recipes) == 1 and all("." in n for n in names) else 0


def telling(groups: Sequence[Group]) -> list[dict[str, str]]:
    """For each group, the fewest settings that distinguish it from others with its name."""
    namesakes: dict[str, list[Group]] = {}
    for group in groups:
        namesakes.setdefault(group.name, []).append(group)
    keys = {name: _fewest(some) for name, some in namesakes.items()}
    return [
        {key: in_one_line(each.settings.get(key, "-")) for key in keys[each.name]}
        for each in groups
    ]


def in_one_line(value: object) -> str:
    """A value as part of a name: a template may have line breaks."""
    return " ".join(str(value).split()) or repr(value)


def _fewest(namesakes: Sequence[Group]) -> list[str]:
    """The fewest keys that distinguish these groups."""
    keys, most = list[str](), 1
    for key in differing(namesakes):
        some = [*keys, key]
        apart = {repr([one.settings.get(k) for k in some]) for one in namesakes}
        if len(apart) > most:
            keys, most = some, len(apart)
    return keys


def _differences(groups: Sequence[Group], keys: Sequence[str]) -> Table:
    """One line per differing key, one column per group."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("what differs", overflow="fold", style="dim")
    for label in labels(groups):
        table.add_column(label, overflow="fold")
    for key in keys:
        table.add_row(Text(key), *(Text(str(group.settings.get(key, "-"))) for group in groups))
    return table


def as_rows(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """A flat row for each group, for CSV and JSON."""
    groups = grouped([summarize_run(folder) for folder in folders])
    keys, scores = differing(groups), scores_of(groups)
    return [_row(group, keys, scores) for group in groups]


def _row(group: Group, keys: Sequence[str], scores: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"run": group.name, "n": len(group.runs)}
    row["seeds"] = " ".join(str(run.seed) for run in group.runs)
    row["folders"] = " ".join(str(run.folder) for run in group.runs)
    row |= {key: group.settings.get(key) for key in keys}
    for score in scores:
        row |= {score: _number(group.mean(score)), f"{score}_spread": _number(group.spread(score))}
    return row


def _number(number: float | None) -> float | None:
    """None for values that JSON and CSV cannot represent."""
    return number if number is not None and math.isfinite(number) else None


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")

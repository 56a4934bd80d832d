"""`kdcore show --data`: rows as the student sees them, with the tokens that are trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from kdcore.analysis.rows import RowSample, SampledRow, sample_rows
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
from kdcore.recipe.recipe import read_recipe
from kdcore.terminal.formatting import percent

_ROWS = 3
_LEGEND: Sequence[tuple[Shown | None, str]] = [
    (None, ""),
    ("trained", "trained"),
    ("never", "never valid"),
    (None, "tokens"),
]


def show_data(looking: Looking) -> None:
    """Rows of each stage's data, or of one stage's."""
    if len(looking.names) != 1:
        raise UsageError("show --data takes one recipe, such as: kdcore show --data quickstart")
    recipe = read_recipe(looking.names[0], plugin_manager([*looking.plugins]), sets=looking.sets)
    count = _ROWS if looking.rows is None else looking.rows
    samples = list(sample_rows(recipe, stage=looking.stage, split=looking.split, count=count))
    pages = [_page(sample) for sample in samples]
    tell_pages(pages, looking, _objects(pages, samples))


def _states(row: SampledRow) -> list[State]:
    return states_of(row, {"trained": row.valid})


def _page(sample: RowSample) -> Page:
    states = [state for row in sample.rows for state in _states(row)]
    trained = states.count("trained")
    never = len(states) - trained
    shares = [counted(trained, len(states)), counted(never, len(states)), f"{len(states):,}"]
    return Page(
        title=", ".join(sample.stages),
        facts=list(_facts(sample)),
        legend=_LEGEND,
        lines=[["of the rows shown", *shares]],
        notes=never_valid(states),
        rows=[_row(sample, row) for row in sample.rows],
    )


def _facts(sample: RowSample) -> Iterator[tuple[str, str]]:
    tokens = sample.tokens
    full = percent(tokens / sample.rows_in_all / sample.block)
    yield "data", f"{sample.data}, split {sample.split}"
    yield "documents", f"{sample.documents:,}{_lost(sample)}"
    yield (
        "rows",
        (
            f"{sample.rows_in_all:,} of at most {sample.block:,} tokens, {tokens:,} tokens in all, "
            f"{full} full"
        ),
    )
    yield "shown", f"{len(sample.rows):,} of them, drawn by the recipe's seed"


def _lost(sample: RowSample) -> str:
    said = f", {sample.cut:,} of them longer than a row and cut" if sample.cut else ""
    return said + (f", {sample.dropped:,} left out: nothing to train" if sample.dropped else "")


def _row(sample: RowSample, row: SampledRow) -> ShownRow:
    length, valid = len(row.input_ids), int(row.valid.sum())
    title = (
        f"row {row.index + 1:,} of {sample.rows_in_all:,}: {length:,} of {sample.block:,} tokens "
        f"({percent(length / sample.block)} full), {valid:,} trained"
    )
    tokens = tokens_of(sample.tokenizer, row, _states(row))
    return ShownRow(title, borders(row), [Side("", tokens)])


def _objects(pages: Sequence[Page], samples: Sequence[RowSample]) -> Iterator[dict[str, Any]]:
    for page, sample in zip(pages, samples, strict=True):
        about = {"runs": list(sample.stages), "split": sample.split, "block": sample.block}
        for shown, row in zip(page.rows, sample.rows, strict=True):
            columns = json_row(shown.sides[0].tokens)
            yield {
                **about,
                "row": row.index + 1,
                "rows": sample.rows_in_all,
                **{key: columns[key] for key in ("tokens", "text", "state")},
                "document": (row.document + 1).tolist(),
            }

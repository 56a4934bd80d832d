"""The summary of a run: first, best and last values of each curve, texts, and paths."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from kdcore.runs.reading.facts import Facts
from kdcore.runs.reading.history import History, Series
from kdcore.terminal import formatting

_TEXT = 240  # characters of an evaluation's text; `kdcore show` has all


class Summary:
    """Printed at the end of a run, and by `kdcore show RUN`."""

    def __init__(self, facts: Facts, history: History, *, with_facts: bool = False) -> None:
        self.facts, self.history, self.with_facts = facts, history, with_facts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._title()
        if self.with_facts and self.facts.rows():
            yield Text()
            yield _pairs(self.facts.rows())
        if self.history.series:
            yield Text()
            yield from _curves(self.history, options.max_width, self.with_facts)
        if self.history.texts:
            yield Text()
            texts = self.history.texts.items()
            yield _pairs([(name, self._shown(text)) for name, text in texts])
        yield Text()
        yield _pairs(self._places())

    def _title(self) -> Text:
        latest = self.history.latest
        done = f"{self.history.step:,} steps, {formatting.count(latest.get('tokens', 0))} tokens"
        unfinished = self.with_facts and not (self.facts.folder / "final").is_dir()
        done += ", unfinished" if unfinished else ""
        taken = f" in {formatting.duration(latest['elapsed'])}" if "elapsed" in latest else ""
        return Text.assemble((self.facts.name, "bold"), "  ", done, taken)

    def _shown(self, text: str) -> str:
        return text if self.with_facts else formatting.shortened(text, _TEXT)

    def _places(self) -> list[tuple[str, str]]:
        folder = self.facts.folder
        model = [("model", str(folder / "final"))] if (folder / "final").is_dir() else []
        return [*model, ("run", str(folder))]


def _pairs(pairs: list[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in pairs:
        grid.add_row(label, Text(text))
    return grid


def _curves(history: History, width: int, parts: bool) -> Iterator[RenderableType]:
    """One line per curve, with its note next to it, or below all if that is too wide."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("", no_wrap=True, overflow="ellipsis")
    columns = ["first", "best", "at step", "last"] if width >= 60 else ["best", "last"]
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True, min_width=8)
    shown = [(label, series, note(history, series)) for label, series in rows(history, parts=parts)]
    names = max([len(label) for label, _, _ in shown], default=0)
    notes = max([len(said) for _, _, said in shown], default=0)
    has_notes = notes > 0 and names + 2 + 10 * len(columns) + notes <= width
    if has_notes:
        table.add_column("", no_wrap=True, style="dim")
    for label, series, said in shown:
        has_best = not series.name.startswith("selection/")
        cells = {
            "first": number(series.first),
            "best": number(series.best, "bold") if has_best else Text(),
            "at step": Text(f"{series.best_step:,}" if has_best else "", "dim"),
            "last": number(series.now),
        }
        table.add_row(
            Text(label), *(cells[name] for name in columns), *([said] if has_notes else [])
        )
    yield table
    if notes and not has_notes:
        yield from (Text(f"{label.strip()}: {said}", "dim") for label, _, said in shown if said)


_SAME = ["eval/perplexity", "eval/bits_per_byte"]  # eval/nll in other units


def rows(history: History, *, parts: bool = False) -> list[tuple[str, Series]]:
    """Loss, its terms if there are several, evaluations, then selection metrics.

    `parts` includes scores that are parts of another one. The validation loss in another unit is
    part of its `note`, not a row.
    """
    terms = history.group("loss/")
    losses = _named([curve for curve in history.group("loss") if curve.name == "loss"], "")
    losses += _named(terms, "loss/", "  ") if len(terms) > 1 else []
    older = history.group("weighted loss/")
    losses += _named(older, "loss/", "  ") if len(older) > 1 else []
    scores = history.scores(parts=parts)
    if "eval/nll" in history.series:
        scores = [curve for curve in scores if curve.name not in _SAME]
    return [
        *losses,
        *_named(scores, "eval/"),
        *_named(history.group("selection/"), "selection/"),
    ]


def note(history: History, series: Series) -> str:
    """The note of a curve: the validation loss in other units, a term's share of the gradient."""
    if series.name == "eval/nll":
        same = [history.series[name] for name in _SAME if name in history.series]
        units = [one.name.removeprefix("eval/").replace("_per_", "/") for one in same]
        return ", ".join(
            f"{unit} {formatting.value(one.now)}" for unit, one in zip(units, same, strict=True)
        )
    share = history.series.get(series.name.replace("loss/", "gradient/", 1))
    if series.name.startswith("loss/") and share is not None and math.isfinite(share.now):
        return f"{formatting.percent(share.now)} of the gradient"
    return ""


def _named(curves: Sequence[Series], prefix: str, indent: str = "") -> list[tuple[str, Series]]:
    return [(indent + curve.name.replace(prefix, "", 1), curve) for curve in curves]


def number(value: float, style: str = "") -> Text:
    """A number; non-finite ones are marked, missing ones are a dash."""
    if style and math.isnan(value):
        return Text("-", "dim")
    return Text(formatting.value(value), style if math.isfinite(value) else "bold red")

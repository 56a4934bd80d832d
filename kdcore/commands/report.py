"""`kdcore report`: an experiment as one self-contained HTML file."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from kdcore.analysis.statistics.differences import LEVEL
from kdcore.cli.examples import examples
from kdcore.cli.main import plugin_manager
from kdcore.commands.compare import comparisons, parsed_margin
from kdcore.commands.comparison.arms import Arm
from kdcore.commands.comparison.courses import Axis
from kdcore.commands.comparison.groups import Group, differing
from kdcore.commands.comparison.tables import Comparison, cells, notes, sentence, title, titles
from kdcore.commands.output import Plugins
from kdcore.commands.reporting import data as data
from kdcore.commands.reporting.charts import Interval, Line, curves, intervals, swatch
from kdcore.commands.show import found_runs
from kdcore.errors import UsageError
from kdcore.files import write_whole

_TOKENS_OF = 4  # arms with coloured tokens


@examples(
    'kdcore report "quickstart.*" --html report.html',
    "kdcore report ce kd --baseline ce --html report.html --rows 0",
)
def report(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Paths, names, prefixes, 'patterns.*'.")
    ],
    html: Annotated[Path, typer.Option(metavar="FILE", help="The file to write.")],
    baseline: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The arm to compare with; by default the first run's."),
    ] = None,
    metric: Annotated[str, typer.Option(help="A score of the runs.")] = "eval/nll",
    margin: Annotated[
        str, typer.Option(help="The largest difference that does not matter: 1% or 0.01.")
    ] = "0.5%",
    price: Annotated[
        float | None, typer.Option(min=0, help="The price of a device hour, in your currency.")
    ] = None,
    rows: Annotated[
        int,
        typer.Option(min=0, help="Rows of tokens of each selection; 0 loads no weights."),
    ] = 2,
    out: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    plugins: Plugins = None,
) -> None:
    """Write an HTML report of an experiment: verdicts, curves, objectives, selections, texts, cost.

    The page has no scripts and loads nothing. For runs with a selection, loads the weights of the
    first seed to colour tokens.
    """
    if html.is_dir():
        raise UsageError(f"cannot write {html}: it is a folder; name a file, such as report.html")
    found = comparisons(found_runs(runs, out), baseline, metric, parsed_margin(margin))
    coloured = list(_coloured(found[0].arms, rows, plugins)) if rows else []
    text = page(found, coloured, price)
    try:
        write_whole(html, text)
    except OSError as error:
        raise UsageError(f"cannot write {html}: {error.strerror}") from None
    print(f"written to {html}: {len(text.encode()) / 1e6:.2f} MB", file=sys.stderr)


def _coloured(arms: Sequence[Arm], rows: int, plugins: Sequence[str] | None) -> Iterator[Any]:
    """The first run of each arm with a selection."""
    selecting = [arm for arm in arms if _setting(arm, "selection.use")][:_TOKENS_OF]
    if not selecting:
        return
    from kdcore.commands.reporting.tokens import coloured

    host = plugin_manager([*(plugins or ())])
    for arm in selecting:
        first = next(iter(arm.runs.values()))
        yield {"arm": arm.label, "found": coloured(first.folder, host, rows)}


def _setting(arm: Arm, key: str) -> object:
    return next(iter(arm.runs.values())).summary.settings.get(key)


def page(found: Sequence[Comparison], coloured: Sequence[Any], price: float | None) -> str:
    """The complete page. The template escapes all texts from runs."""
    from jinja2 import Environment
    from markupsafe import Markup

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["picture"] = Markup
    template = files("kdcore.commands.reporting").joinpath("report.html").read_text("utf-8")
    return environment.from_string(template).render(_content(found, coloured, price))


def _content(
    found: Sequence[Comparison], coloured: Sequence[Any], price: float | None
) -> dict[str, Any]:
    first, arms = found[0], found[0].arms
    groups = [Group([course.summary for course in arm.runs.values()]) for arm in arms]
    styles = {arm.label: n for n, arm in enumerate(arms)}
    return {
        "metric": first.metric,
        "words": first.words,
        "level": f"{LEVEL:.0%}".replace("%", " %"),
        "baseline": first.baseline.label,
        "names": ", ".join(arm.label for arm in arms) if len(arms) < 4 else f"{len(arms)} arms",
        "arms": [data.facts_of(arm, n) for n, arm in enumerate(arms)],
        "count": sum(len(arm.runs) for arm in arms),
        "sentences": [sentence(first, row) for row in first.rows],
        "tables": [_table(each, styles) for each in found],
        "curves": list(_curves(first.metric, arms)),
        "differing": data.differing_rows(arms, differing(groups)),
        "gradients": list(_gradients(arms)),
        "selection": data.selection_rows(arms) if any(map(_selects, arms)) else [],
        "selection_charts": list(_selection_charts(arms)),
        "coloured": coloured,
        "uncoloured": _others(arms, {each["arm"] for each in coloured}),
        "answers": [(arm.label, written) for arm in arms if (written := data.answers(arm))],
        "samples": data.samples(arms),
        "cost": data.cost(arms, price),
        "swatch": swatch,
    }


def _others(arms: Sequence[Arm], shown: set[str]) -> list[str]:
    """Further arms with a selection, if tokens of some are shown."""
    return [a.label for a in arms if shown and _selects(a) and a.label not in shown]


def _selects(arm: Arm) -> bool:
    return _setting(arm, "selection.use") is not None


def _table(found: Comparison, styles: dict[str, int]) -> dict[str, Any]:
    shown = [
        Interval(row.arm.label, styles[row.arm.label], row.found.mean, *row.found.interval())
        for row in found.rows
    ]
    margin = max((row.margin for row in found.rows), default=0.0)
    lines = [(styles[row.arm.label], cells(row)) for row in found.rows]
    return {
        "title": title(found),
        "refused": found.refused,
        "heads": titles(found),
        "rows": lines,
        "notes": [note for note in notes(found) if note],
        "picture": intervals(f"Differences from {found.baseline.label}", shown, margin),
    }


def _curves(metric: str, arms: Sequence[Arm]) -> Iterator[dict[str, Any]]:
    """The metric over tokens and over time, each with its numbers."""
    cpu = next(iter(arms[0].runs.values())).clock == "cpu_seconds"
    axes: dict[Axis, str] = {"tokens": "trained tokens", "time": "CPU time" if cpu else "time"}
    for axis, words in axes.items():
        lines = [data.evaluations(arm, n, metric, axis) for n, arm in enumerate(arms)]
        name = f"{metric} over {words}"
        yield {"title": name, "picture": curves(name, lines, axis), "axis": axis, "lines": lines}


def _gradients(arms: Sequence[Arm]) -> Iterator[dict[str, Any]]:
    """Each term's share of the gradient over steps, for arms with several terms."""
    for arm in arms:
        lines: list[Line] = []
        for n, name in enumerate(data.names_under(arm, "gradient/")):
            lines.append(data.series(arm, n, name, name.removeprefix("gradient/")))
        if len(lines) > 1:
            name = f"share of the gradient, {arm.label}"
            yield {"title": name, "picture": curves(name, lines, "steps"), "lines": lines}


def _selection_charts(arms: Sequence[Arm]) -> Iterator[dict[str, Any]]:
    """The threshold over steps, for arms whose selection ranks."""
    key = "selection/threshold"
    lines = [data.series(arm, n, key) for n, arm in enumerate(arms)]
    lines = [line for line in lines if line.points]
    if lines:
        name = "threshold of the selection"
        yield {"title": name, "picture": curves(name, lines, "steps"), "lines": lines}

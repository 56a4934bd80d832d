"""`kdcore compare`: whether one arm is better than another, and with what confidence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from kdcore.cli.examples import examples
from kdcore.commands.comparison.arms import Arm, arms_of, chosen
from kdcore.commands.comparison.courses import Axis, Half
from kdcore.commands.comparison.paired import Compared, Margin, compared, known_metric
from kdcore.commands.comparison.tables import (
    Comparison,
    as_csv,
    as_json,
    as_latex,
    as_markdown,
    sentence,
    shown,
)
from kdcore.commands.output import AsJson, print_json, tell
from kdcore.commands.show import found_runs
from kdcore.errors import UsageError
from kdcore.runs.reading.history import lower_is_better

Better = Literal["lower", "higher"]
Format = Literal["markdown", "latex", "csv"]
_AXES: dict[str, tuple[Axis, ...]] = {
    "tokens": ("tokens",),
    "time": ("time",),
    "both": ("tokens", "time"),
}


@examples(
    'kdcore compare "quickstart.*"',
    "kdcore compare ce kd --baseline ce --margin 1%",
    'kdcore compare "quickstart.*" --metric bits_per_byte --format markdown',
)
def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Paths, names, prefixes, 'patterns.*'.")
    ],
    baseline: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The arm to compare with; by default the first run's."),
    ] = None,
    metric: Annotated[str, typer.Option(help="A score of the runs.")] = "eval/nll",
    better: Annotated[
        Better | None,
        typer.Option(help="Which way is better; by default guessed from the metric's name."),
    ] = None,
    margin: Annotated[
        str, typer.Option(help="The largest difference that does not matter: 1% or 0.01.")
    ] = "0.5%",
    at: Annotated[
        Literal["both", "tokens", "time"],
        typer.Option(help="Compare at equal tokens, at equal time, or both."),
    ] = "both",
    half: Annotated[
        Half | None,
        typer.Option("--documents", help="Only this half of the held-out documents."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    form: Annotated[
        Format | None, typer.Option("--format", help="Print the table in this format.")
    ] = None,
    as_json_too: AsJson = False,
) -> None:
    """Compare runs with a baseline, paired by seed: difference, interval, verdict and its reason.

    Runs that differ only in the seed form one arm. A verdict needs at least three shared seeds.
    """
    if as_json_too and form:
        raise UsageError("--json and --format exclude each other: give one of them")
    folders, wide = found_runs(runs, out), parsed_margin(margin)
    found = comparisons(folders, baseline, metric, wide, at=_AXES[at], half=half, better=better)
    if as_json_too:
        print_json(as_json(found))
    elif form:
        write = {"markdown": as_markdown, "latex": as_latex, "csv": as_csv}[form]
        print(write(found))
    else:
        tell(*shown(found))
        for row in found[0].rows:  # not folded, so that it can be copied
            print(sentence(found[0], row))


def comparisons(
    folders: Sequence[Path],
    baseline: str | None,
    metric: str,
    margin: Margin,
    *,
    at: Sequence[Axis] = ("tokens", "time"),
    half: Half | None = None,
    better: Better | None = None,
) -> list[Comparison]:
    """One comparison per axis. If one of several is not possible, its reason takes its place."""
    arms = _arms(folders, half)
    base, whole = chosen(arms, baseline), known_metric(arms, metric)
    lower = lower_is_better(whole) if better is None else better == "lower"
    found = list[Comparison]()
    for axis in at:
        rows, refused = list[Compared](), None
        try:
            rows = compared(arms, base, whole, axis, margin, lower=lower)
        except UsageError as error:
            if len(at) == 1 or axis == "tokens":
                raise
            refused = str(error)
        found.append(Comparison(arms, base, whole, axis, margin, rows, lower, refused, half))
    return found


def _arms(folders: Sequence[Path], half: Half | None) -> list[Arm]:
    if len(folders) < 2:
        raise UsageError("a comparison needs at least two runs: kdcore show lists them")
    arms = arms_of(folders, half)
    if len(arms) == 1:
        raise UsageError(
            f"these {len(folders)} runs differ only in the seed, so there is nothing to "
            "compare: name runs of another recipe too"
        )
    return arms


def parsed_margin(text: str) -> Margin:
    """`0.5%` of the baseline, or a number in the metric's unit."""
    number, percent, rest = text.strip().partition("%")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if rest or not 0 <= value < float("inf"):
        raise UsageError(f"--margin {text!r} is not a margin: type a value such as 0.5% or 0.01")
    return Margin(value / 100 if percent else value, bool(percent))

"""`kdcore show`: lists runs, summarises one, or compares several."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from kdcore.cli.examples import examples
from kdcore.commands.comparison.group_tables import as_rows, comparison_in_full, reasons, to_csv
from kdcore.commands.fitting import Column, Fitting
from kdcore.commands.output import AsJson, Plugins, print_json, tell
from kdcore.commands.rows import options as asked
from kdcore.errors import UsageError
from kdcore.runs.folder import failure_of, find_run, finished, runs_in
from kdcore.runs.reading.facts import facts_of_folder, read_settings
from kdcore.runs.reading.history import History
from kdcore.runs.reading.metrics import iter_metrics, latest_values
from kdcore.runs.reading.summary import Summary
from kdcore.terminal.formatting import duration, value

AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]


@examples(
    "kdcore show",
    "kdcore show last",
    'kdcore show "quickstart.*" --csv',
    "kdcore show --data quickstart --rows 1",
)
def show(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN|RECIPE", help="Paths, names, prefixes, 'patterns.*' or last."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    as_csv: AsCsv = False,
    as_json: AsJson = False,
    tokens: asked.OfTokens = False,
    data: asked.OfData = False,
    rows: asked.Rows = None,
    html: asked.Html = None,
    steps: asked.Steps = None,
    of_step: asked.OfStep = None,
    scores: asked.Scores = False,
    stage: asked.OfStage = None,
    split: asked.OfSplit = "train",
    rollouts: asked.Rollouts = False,
    sets: asked.Sets = None,
    plugins: Plugins = None,
) -> None:
    """Show all runs, newest first; a summary of one run; or a comparison of several over seeds.

    Over n seeds a score is mean ± sample standard deviation.

    With --tokens, what a training step kept; with --data, the rows that a recipe trains on.
    """
    looking = asked.Looking(
        names=runs or (),
        out=out,
        as_json=as_json,
        rows=rows,
        html=html,
        steps=steps or (),
        of_step=of_step,
        scores=scores,
        stage=stage,
        split=split,
        rollouts=rollouts,
        sets=sets or (),
        plugins=plugins or (),
    )
    if tokens or data:
        _look(looking, tokens, data, as_csv)
        return
    looking.refuse("rows", "html", "sets", "plugins", without="--tokens or --data")
    looking.refuse("steps", "of_step", "scores", without="--tokens")
    looking.refuse("stage", "split", "rollouts", without="--data")
    _summarise(runs or (), out, as_csv, as_json)


def _look(looking: asked.Looking, tokens: bool, data: bool, as_csv: bool) -> None:
    """Rows, token by token."""
    if tokens and data:
        raise UsageError("--tokens looks at a run and --data at a recipe: give one of them")
    if as_csv:
        raise UsageError("--csv has no place for rows of tokens; --json has")
    if tokens:
        looking.refuse("stage", "split", "rollouts", without="--data")
        from kdcore.commands.rows.tokens import show_tokens

        show_tokens(looking)
    else:
        looking.refuse("steps", "of_step", "scores", without="--tokens")
        from kdcore.commands.rows.data import show_data
        from kdcore.commands.rows.rollouts import show_rollouts

        (show_rollouts if looking.rollouts else show_data)(looking)


def _summarise(runs: Sequence[str], out: Path, as_csv: bool, as_json: bool) -> None:
    """Runs by their metrics."""
    if not runs:
        _list(runs_in(out), out, as_csv, as_json)
        return
    folders = found_runs(runs, out)
    if len(folders) == 1 and not as_csv:
        _one(folders[0], as_json)
    elif as_csv or as_json:
        _print(as_rows(folders), as_csv)
    else:
        tell(*comparison_in_full(folders))


def found_runs(names: Sequence[str], out: Path) -> list[Path]:
    """The named runs, each once."""
    return list(dict.fromkeys(folder for name in names for folder in _found(name, out)))


def _found(name: str, out: Path) -> list[Path]:
    """The runs that a name refers to: several only for a pattern, which may begin with a folder."""
    if not any(letter in name for letter in "*?["):
        return [find_run(name, out)]
    folder, pattern = Path(name).parent, Path(name).name
    place = out if folder == Path() else folder
    found = [run for run in runs_in(place) if fnmatchcase(run.name, pattern)]
    if not found:
        raise UsageError(f"no run in {place} is named like {pattern!r}; kdcore show lists them")
    return found[::-1]  # oldest first: stages in their order


def _print(rows: Sequence[dict[str, Any]], as_table: bool) -> None:
    if as_table:
        print(to_csv(rows))
    else:
        print_json(rows)


def _list(folders: Sequence[Path], out: Path, csv: bool, json: bool) -> None:
    rows = [_line(folder) for folder in folders]
    if csv or json:
        _print(rows, csv)
    elif not rows:
        tell(Text(f"no runs in {out} yet; kdcore run quickstart makes some"))
    else:
        tell(_table(rows), *reasons(folders))


def _line(folder: Path) -> dict[str, Any]:
    """A run on one line, from the end of its metrics."""
    last, why = latest_values(folder, ("loss", "eval/nll")), failure_of(folder)
    return {
        "run": folder.name,
        "state": _state(folder, why),
        "reason": why,
        "steps": last.get("step", 0),
        "loss": last.get("loss"),
        "nll": last.get("eval/nll"),
        "bits_per_byte": last.get("eval/bits_per_byte"),
        "seconds": last.get("elapsed"),
    }


def _state(folder: Path, why: str | None) -> str:
    if finished(folder):
        return "finished"
    return "unfinished" if why is None or why.startswith("interrupted") else "failed"


def _table(rows: Sequence[dict[str, Any]]) -> Fitting:
    def column(title: str, key: str, importance: int) -> Column:
        return Column(title, [value(row[key]) for row in rows], importance)

    return Fitting(
        [
            Column("run", [row["run"] for row in rows], 7, is_number=False),
            Column("state", [row["state"] for row in rows], 4, is_number=False),
            Column("steps", [f"{row['steps']:,}" for row in rows], 3),
            column("loss", "loss", 1),
            column("nll", "nll", 6),
            column("bits/byte", "bits_per_byte", 5),
            Column("time", [duration(row["seconds"]) for row in rows], 2),
        ]
    )


def _one(folder: Path, as_json: bool) -> None:
    history = History(iter_metrics(folder))
    if not as_json:
        tell(Summary(facts_of_folder(folder), history, with_facts=True))
        return
    curves = {
        curve.name: {"first": curve.first, "best": curve.best, "last": curve.now}
        for curve in history.series.values()
    }
    print_json({**_line(folder), "curves": curves, "texts": history.texts, **read_settings(folder)})

"""`kdcore doctor`: checks a recipe's models, tokenizer and data on one page before a run."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import Annotated

import numpy as np
import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kdcore.analysis.rows import RowSample
from kdcore.cli.examples import examples
from kdcore.cli.main import plugin_manager
from kdcore.commands.checks.examination import Examined, Finding, Model, examine, trained_share
from kdcore.commands.fitting import labelled
from kdcore.commands.output import Plugins, tell
from kdcore.errors import UsageError
from kdcore.recipe.recipe import read_recipe
from kdcore.terminal.formatting import count, percent

_MARGIN = (0, 0, 0, 2)
_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


@examples("kdcore doctor quickstart --stage kd", "kdcore doctor mine.toml --set data.block=1024")
def doctor(
    recipe: Annotated[str, typer.Argument(help="A path, or the name of a shipped recipe.")],
    stage: Annotated[str | None, typer.Option(metavar="NAME", help="Only this stage.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="K=V", help="Change a key of the recipe.")
    ] = None,
    plugins: Plugins = None,
) -> None:
    """Check models, tokenizer, lengths and masks on one page. Loads no weights.

    Sends a few rows to a teacher behind a server: whether it answers, how fast, and what all of the
    data would take.

    Tokenises the data as the run will. Exits with 2 if a run would stop at an error.
    """
    found = read_recipe(recipe, plugin_manager(plugins), sets=sets or ())
    for note in found.notes:
        print(note, file=sys.stderr)
    names = [each.name for each in found.stages]
    if stage is not None and stage not in names:
        there = ", ".join(names) or "it has none"
        raise UsageError(f"recipe {found.name!r} has no stage {stage!r}: {there}")
    errors = 0
    for examined in examine(found, stage):
        if stage is None or examined.name == found.run_name(stage):
            _tell(examined)
            errors += sum(each.degree == "error" for each in examined.findings)
    if errors:
        raise typer.Exit(UsageError.exit_code)


def _tell(found: Examined) -> None:
    tell(Text(found.name, "bold"), Padding(_models(found.models), _MARGIN), "")
    trial = found.trial.lines() if found.trial is not None else ()
    tell(labelled([*_tokenizer(found), *_data(found), *trial]), "")
    tell(Padding(_findings(found.findings), _MARGIN), "")


def _models(models: list[Model]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="cyan")
    for title in ("", "model", "parameters", "dtype", "ids", "head", "positions"):
        is_number = title in ("parameters", "ids", "positions")
        table.add_column(title, justify="right" if is_number else "left", overflow="fold")
    for each in models:
        table.add_row(
            Text(each.role, "cyan"),
            Text(f"{each.name} ({each.kind})"),
            "not known" if each.parameters is None else count(each.parameters),
            each.dtype,
            f"{each.width:,}",
            "tied" if each.tied else "its own",
            "any" if each.reach is None else f"{each.reach:,}",
        )
    return table


def _tokenizer(found: Examined) -> Iterator[tuple[str, str]]:
    tokenizer = found.tokenizer
    assert tokenizer is not None
    shared = "" if found.ids is None else f", {found.ids:,} shared by all models"
    yield "tokenizer", f"{type(tokenizer).__name__}, {len(tokenizer):,} ids{shared}"
    tokens = [
        f"{name} {_token(getattr(tokenizer, f'{name}_token'))}" for name in ("bos", "eos", "pad")
    ]
    yield "special tokens", ", ".join(tokens)
    yield "chat template", "its own" if tokenizer.chat_template else "none"


def _token(text: object) -> str:
    return "none" if text is None else repr(text)


def _data(found: Examined) -> Iterator[tuple[str, str]]:
    for sample in found.samples:
        if sample is found.samples[0]:
            yield "data", sample.data
        beginning = f"{sample.split}: "
        said = [
            each.removeprefix(beginning) for each in found.messages if each.startswith(beginning)
        ]
        yield sample.split, "\n".join(said) or _rows(sample)
    if not found.samples:
        return
    sample = found.samples[0]
    yield "lengths", _lengths(sample)
    trained = f"{trained_share(sample):.1%} of the tokens are trained"
    yield "masks", f"{trained}, of {len(sample.rows):,} rows that were drawn"
    yield "begin", _begin(found)
    ends, documents = found.ended
    yield "ends", f"{ends:,} of {documents:,} documents in them end with a learned end token"


def _begin(found: Examined) -> str:
    """The token that most documents begin with, unless it is ordinary text."""
    assert found.tokenizer is not None
    (first, times), *_ = Counter(found.first).most_common(1) or [(-1, 0)]
    if first not in found.tokenizer.all_special_ids:
        return "documents begin with text: no token before it"
    token = repr(found.tokenizer.decode([first]))
    return f"{times:,} of {len(found.first):,} documents in them begin with {token}"


def _rows(sample: RowSample) -> str:
    full = percent(sample.tokens / sample.rows_in_all / sample.block)
    return (
        f"{sample.documents:,} documents, {sample.tokens:,} tokens in {sample.rows_in_all:,} rows "
        f"of at most {sample.block:,}, {full} full"
    )


def _lengths(sample: RowSample) -> str:
    middle, most, longest = np.quantile(sample.lengths, [0.5, 0.95, 1.0])
    return (
        f"half of the documents have up to {middle:,.0f} tokens, 95 % up to {most:,.0f}, the "
        f"longest {longest:,.0f}"
    )


def _findings(findings: list[Finding]) -> Text:
    if not findings:
        return Text("nothing found that a run would stumble over", "green")
    lines = [
        Text.assemble((f"{each.degree}: ", _STYLES[each.degree]), each.text) for each in findings
    ]
    return Text("\n").join(
        sorted(lines, key=lambda line: [*_STYLES].index(line.plain.split(":")[0]))
    )

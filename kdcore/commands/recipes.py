"""`kdcore recipes`: the shipped recipes. Does not need torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from kdcore.cli.examples import examples
from kdcore.commands.output import AsJson, print_json, tell
from kdcore.recipe.files import recipe_name, shipped_recipes

_NEEDS = "Needs:"
_SMALLER = "A 24 GB card:"
_MEASURED = "Measured:"
# A stage and a score, their mean over n seeds, and the sample standard deviation.
_FIGURE = re.compile(r"(?:([^\s;]+) )?([^\s;]+) (-?[\d.]+) \+- ([\d.]+) \(n = (\d+)\)")


@examples("kdcore recipes", "kdcore recipes --json")
def recipes(as_json: AsJson = False) -> None:
    """List the shipped recipes: purpose, requirements, results, and settings for 24 GB.

    Results are means over n seeds with the sample standard deviation, where measured.
    """
    found = [_described(path) for path in shipped_recipes()]
    if as_json:
        print_json(found)
        return
    table = Table(box=None, padding=(0, 2, 1, 0), pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for recipe in found:
        said = Text.assemble(recipe["shows"], _needs(recipe), (_gave(recipe["measured"]), "dim"))
        table.add_row(recipe["name"], said)
    tell(table, Text("kdcore run NAME runs one; kdcore new recipe NAME begins your own.", "dim"))


def _gave(measured: Sequence[dict[str, Any]]) -> str:
    said = ", ".join(_in_words(each) for each in measured)
    return f"\nGave {said}" if said else ""


def _in_words(figure: dict[str, Any]) -> str:
    """Mean and deviation with the same number of decimals."""
    mean, deviation = figure["mean"], figure["deviation"]
    decimals = max(len(f"{each}".partition(".")[2]) for each in (mean, deviation))
    of = " ".join(filter(None, [figure["stage"], figure["score"]]))
    return f"{of} {mean:.{decimals}f} ± {deviation:.{decimals}f} (n = {figure['n']})"


def _needs(recipe: dict[str, Any]) -> tuple[str, str]:
    said = f"\nNeeds {recipe['needs']}" if recipe["needs"] else ""
    if recipe["on_24_gb"]:
        said += f"\n{_SMALLER} {recipe['on_24_gb']}"
    return said, "dim"


def _described(path: Path) -> dict[str, Any]:
    """A recipe by its head comment: a sentence on its purpose, a line `# Needs: ...`, and
    optionally a line `# A 24 GB card: ...` with settings, and lines `# Measured: STAGE SCORE MEAN
    +- DEVIATION (n = SEEDS)`.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    head = [line[1:].strip() for line in takewhile(lambda line: line.startswith("#"), lines)]
    return {
        "name": recipe_name(path),
        "shows": _first_sentence(head),
        "needs": _marked(_NEEDS, head),
        "on_24_gb": _marked(_SMALLER, head),
        "measured": [_figure(found) for found in _FIGURE.finditer(_marked(_MEASURED, head))],
        "path": str(path),
    }


def _figure(found: re.Match[str]) -> dict[str, Any]:
    stage, score, mean, deviation, seeds = found.groups()
    numbers = {"mean": float(mean), "deviation": float(deviation), "n": int(seeds)}
    return {"stage": stage or "", "score": score, **numbers}


def _marked(mark: str, head: list[str]) -> str:
    return " ".join(line.removeprefix(mark).strip() for line in head if line.startswith(mark))


def _first_sentence(head: list[str]) -> str:
    """Lines up to the end of the first sentence."""
    sentence: list[str] = []
    for line in head:
        if line.startswith((_NEEDS, _SMALLER, _MEASURED)):
            continue
        sentence.append(line)
        if line.endswith((".", "!", "?")):
            break
    return " ".join(sentence)

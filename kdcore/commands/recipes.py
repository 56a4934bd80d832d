"""`kdcore recipes`: what can be run as it is. Needs no torch."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

from rich.table import Table
from rich.text import Text

from kdcore.cli.examples import examples
from kdcore.commands.output import AsJson, print_json, tell
from kdcore.recipe.files import recipe_name, shipped_recipes

_NEEDS = "Needs:"
_SMALLER = "A 24 GB card:"


@examples("kdcore recipes", "kdcore recipes --json")
def recipes(as_json: AsJson = False) -> None:
    """List the shipped recipes: what each shows, what it needs, and how it fits 24 GB."""
    found = [_described(path) for path in shipped_recipes()]
    if as_json:
        print_json(found)
        return
    table = Table(box=None, padding=(0, 2, 1, 0), pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for recipe in found:
        table.add_row(recipe["name"], Text.assemble(recipe["shows"], _needs(recipe)))
    tell(table, Text("kdcore run NAME runs one; kdcore new recipe NAME begins your own.", "dim"))


def _needs(recipe: dict[str, str]) -> tuple[str, str]:
    said = f"\nNeeds {recipe['needs']}" if recipe["needs"] else ""
    if recipe["on_24_gb"]:
        said += f"\n{_SMALLER} {recipe['on_24_gb']}"
    return said, "dim"


def _described(path: Path) -> dict[str, str]:
    """A recipe by the comment at its head: a sentence on what it shows, a line `# Needs: ...`, and
    perhaps a line `# A 24 GB card: ...` with what to set."""
    lines = path.read_text(encoding="utf-8").splitlines()
    head = [line[1:].strip() for line in takewhile(lambda line: line.startswith("#"), lines)]
    return {
        "name": recipe_name(path),
        "shows": _first_sentence(head),
        "needs": _marked(_NEEDS, head),
        "on_24_gb": _marked(_SMALLER, head),
        "path": str(path),
    }


def _marked(mark: str, head: list[str]) -> str:
    return " ".join(line.removeprefix(mark).strip() for line in head if line.startswith(mark))


def _first_sentence(head: list[str]) -> str:
    """Lines up to the first that ends a sentence."""
    sentence: list[str] = []
    for line in head:
        if line.startswith((_NEEDS, _SMALLER)):
            continue
        sentence.append(line)
        if line.endswith((".", "!", "?")):
            break
    return " ".join(sentence)

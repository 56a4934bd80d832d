"""docs/losses.md says what the losses are: its tables agree with them, and its examples run."""

import dataclasses
import re
from pathlib import Path

import pytest
import textbook
import tomli
from kdcore_losses import kdcore_losses

TEXT = (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")
LOSSES = {loss.name: loss for loss in kdcore_losses()}
ROWS = [re.split(r"(?<!\\)\|", line)[1:-1] for line in TEXT.splitlines() if line.startswith("| `")]
ENGINE_KEYS = {"use", "weight", "on"}


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def quoted(cell):
    return re.findall(r"`([^`]+)`", cell)


def test_python_examples_run():
    names = {"__name__": "docs"}
    for block in blocks("python"):
        exec(compile(block, "docs/losses.md", "exec"), names)
    assert "SquaredHellinger" in names


def test_recipe_examples_are_accepted():
    tables = [table for block in blocks("toml") for table in tomli.loads(block)["loss"]]
    assert len(tables) >= 5
    for table in tables:
        LOSSES[table["use"]](**{key: table[key] for key in table.keys() - ENGINE_KEYS})


@pytest.mark.parametrize("name", LOSSES)
def test_the_table_has_formula_and_options(name):
    (row,) = [row for row in ROWS if quoted(row[0]) == [name]]
    made = LOSSES[name]()
    assert quoted(row[1]) == [made.formula()]
    fields = dataclasses.fields(made) if dataclasses.is_dataclass(made) else []
    assert tomli.loads("\n".join(quoted(row[2]))) == {f.name: f.default for f in fields}


def test_every_function_of_a_formula_is_explained():
    explained = {quoted(row[0])[0].split("(")[0] for row in ROWS if "(" in row[0]}
    assert set(textbook.FUNCTIONS) <= explained

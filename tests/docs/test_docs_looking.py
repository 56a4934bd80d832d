"""docs/looking.md: every command in it is executed, in order, and does what is said there."""

import json
import re
import shlex
from pathlib import Path
from typing import get_args

import pytest
from documents import DOCS, snippets
from typer.testing import CliRunner

from kdcore.cli.main import app
from kdcore.commands.rows.page import State

DOCUMENT = "looking.md"
SNIPPETS = snippets(DOCUMENT)
COMMANDS = [
    line for snippet in SNIPPETS if snippet.language == "sh" for line in snippet.text.splitlines()
]


def test_every_snippet_is_of_a_language_that_is_executed_here():
    assert [snippet.language for snippet in SNIPPETS] == ["toml", "sh", "text", "sh"]


def test_the_states_are_those_there_are():
    lines = re.findall(r"^\| `(\w+)` \|", (DOCS / DOCUMENT).read_text(), re.MULTILINE)
    assert set(lines) == set(get_args(State))


@pytest.mark.slow
def test_the_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDCORE_PLUGINS_OFF", "panel")
    monkeypatch.setenv("COLUMNS", "80")
    recipe, _, shown, _ = (snippet.text for snippet in SNIPPETS)
    Path("hard.toml").write_text(recipe)
    said = {}
    for command in COMMANDS:
        done = CliRunner().invoke(app, shlex.split(command)[1:], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        said[command] = done.stdout
    data = [text for command, text in said.items() if "--data" in command]
    assert data[1] == shown
    assert [each["state"][:2] for each in json.loads(data[3])] == [["first", "trained"]] * 3
    assert "<script" not in Path("rows.html").read_text(encoding="utf-8")
    tokens = [text for command, text in said.items() if "--tokens" in command]
    assert "all 4 of training step 8" in tokens[0] and "⟦" in tokens[0]
    assert "training step 5" in tokens[1] and "\nscore " in tokens[1]
    assert "They differ in" in tokens[2] and "▸" in tokens[2]
    assert "training step 1\n" in tokens[3] and "(10 %)" in tokens[3]
    assert "score " in Path("tokens.html").read_text(encoding="utf-8")
    (row,) = json.loads(tokens[5])
    assert set(row["state"]) == {"first", "kept", "dropped"}

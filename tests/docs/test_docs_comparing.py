"""docs/comparing.md: every command in it is executed, in order, and does what is said there."""

import csv
import io
import json
import re
import shlex
from pathlib import Path

import pytest
from documents import snippets
from typer.testing import CliRunner

from kdcore.cli.main import app

SNIPPETS = snippets("comparing.md")
COMMANDS = [
    line for snippet in SNIPPETS if snippet.language == "sh" for line in snippet.text.splitlines()
]


def test_every_snippet_is_of_a_language_that_is_executed_here():
    assert [snippet.language for snippet in SNIPPETS] == ["toml", "sh", "sh", "sh", "sh", "sh"]


@pytest.mark.slow
def test_the_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDCORE_PLUGINS_OFF", "panel")
    monkeypatch.setenv("COLUMNS", "160")
    Path("small.toml").write_text(SNIPPETS[0].text)
    said = {}
    for command in COMMANDS:
        done = CliRunner().invoke(app, shlex.split(command)[1:], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        said[command] = done.stdout
    run, first, bits, half, latex, markdown, table, as_json, _, planned, measured = said.values()
    assert len(run.splitlines()) == 9
    assert "against all, at equal tokens" in first and "against all, at equal CPU time" in first
    assert "3 paired seeds and" in first and "held-out documents, both counted as random" in first
    assert "bits per byte" in bits and "reference" in bits and "Holm's correction over 2" in bits
    assert "on the second half of the documents" in half and "15 held-out documents" in half
    assert r"\toprule" in latex and "| rho | 3 |" in markdown
    rows = json.loads(as_json)
    assert [row["arm"] for row in rows] == ["rho", "rho"]
    assert len(list(csv.DictReader(io.StringIO(table)))) == 2
    assert rows[0]["documents"] == 30 and rows[0]["seeds"] == 3
    page = Path("report.html").read_text(encoding="utf-8")
    assert "H→L" in page and "kept" in page and "<script" not in page
    assert planned.count(", predicted: from operations and bytes") == 3
    assert len(re.findall(r", \d+ CPU seconds, measured: \d+ steps of", measured)) == 3
    assert "in money)" in measured

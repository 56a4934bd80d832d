"""docs/gpu.md: every command in it is executed, and its predictions are those of the script."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from documents import DOCS, snippets
from typer.testing import CliRunner

ROOT = DOCS.parent
COMMANDS = [
    line
    for snippet in snippets("gpu.md")
    if snippet.language == "sh"
    for line in snippet.text.splitlines()
]
TEXT = (DOCS / "gpu.md").read_text()
# What takes minutes runs with tiny shapes; the whole rehearsal has a test of its own.
SHORT = {"benchmarks/gpu/planned.py": ["--rehearse"], "benchmarks/gpu/day.py": ["--help"]}


def of(program):
    return [command for command in COMMANDS if command.split()[0] == program]


def test_every_command_is_of_a_kind_that_is_tested():
    assert {command.split()[0] for command in COMMANDS} == {"kdcore", "python", "make"}
    assert {snippet.language for snippet in snippets("gpu.md")} == {"sh"}


@pytest.mark.parametrize("command", of("kdcore"))
def test_commands_find_no_errors(command, tmp_path, monkeypatch):
    from kdcore.cli.main import app

    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)[1:]
    assert words[0] == "check"
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output


@pytest.mark.slow
@pytest.mark.parametrize("command", of("python"))
def test_scripts_run(command):
    words = shlex.split(command)[1:]
    done = subprocess.run(
        [sys.executable, *words, *SHORT.get(words[0], [])], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", of("make"))
def test_targets_of_make_are_there(command):
    done = subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "benchmarks/gpu/day.py" in done.stdout, done.stderr


def test_predicted_steps_are_the_script_s(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import roofline

    lines = [line for line in TEXT.splitlines() if line.startswith("| `")]
    documented = {line.split("`")[1]: line.split("|")[2:-1] for line in lines if " ms" in line}
    for stage in (*roofline.STAGES, *roofline.OTHERS):
        found = [roofline.predict(stage, card) for card in roofline.CARDS]
        shown = [f" {_rounded(1e3 * one.seconds)} ms " if one.rows else " - " for one in found]
        assert documented[stage.name] == shown
    del sys.modules["roofline"], sys.modules["recipe_shapes"]


def _rounded(ms):
    return f"{ms:.1f}" if ms < 10 else f"{float(f'{ms:.2g}'):,.0f}"


def test_nothing_is_claimed_that_was_not_run():
    results = [path.name for path in (ROOT / "benchmarks" / "results").glob("*-gpu-*.md")]
    assert ("No GPU has run kdcore yet" in TEXT) == (not results)


def test_figures_are_marked_as_predicted_until_they_are_measured():
    """On this page, at the head of each recipe, and in what `kdcore plan` prints of a GPU."""
    from kdcore.commands.plan import _DEVICES

    above, marked = "", False
    for line in TEXT.splitlines():
        if line.startswith(("|", "```")) or not line:
            assert marked or not (line.startswith("|") and " ms" in line), above
        else:
            above, marked = line, (marked and not line.startswith("#")) or "redicted" in line
    assert "Predicted" in TEXT.partition("## What fits")[2].partition("|")[0]
    recipes = [path.read_text() for path in (ROOT / "recipes").glob("*.toml")]
    needs = [line for text in recipes for line in text.splitlines() if "a GPU of" in line]
    assert len(needs) > 20 and all("(predicted)" in line for line in needs)
    assert "predicted" in _DEVICES["cuda"]


def test_it_is_linked():
    assert "docs/gpu.md" in (ROOT / "README.md").read_text()
    assert Path(DOCS / "gpu.md").exists()

"""Every command and snippet of the README is executed."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from own_models import lay_own_models
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
COMMANDS = [
    line.removeprefix("$ ")
    for language, text in BLOCKS
    if language == "console"
    for line in text.splitlines()
]
# Stages have steps of their own; two of each show that a command runs.
SHORT = ["--set", "stage.teacher.train.steps=2", "--set", "train.eval_rows=8"]
OWN = ["--set", "train.steps=2"]  # of a recipe without stages


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("here")
    (python,) = [text for language, text in BLOCKS if language == "python"]
    (folder / "overlap.py").write_text(python)
    lay_own_models(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("kdcore ")])
def test_a_command_of_kdcore_runs(command, here, monkeypatch):
    monkeypatch.chdir(here)
    from kdcore.cli import main

    arguments = shlex.split(command)[1:]
    if arguments[0] == "run":
        arguments += [*(OWN if arguments[1] == "mine.toml" else SHORT), "-p", "no:panel"]
    said = CliRunner().invoke(main.app, arguments)
    assert said.exit_code == 0, said.output


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_a_target_of_make_is_there(command):
    done = subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_pip_installs_is_there():
    installs = [shlex.split(c) for c in COMMANDS if c.startswith("pip install ")]
    assert [words[4] for words in installs] == ["torch", "."]
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"#.*|[\w-]+==[\w.]+", line) for line in constraints)
    assert (ROOT / "pyproject.toml").exists()


def test_every_kind_of_command_is_tested():
    assert {command.split()[0] for command in COMMANDS} == {"kdcore", "make", "pip"}


def test_what_the_readme_links_to_is_there():
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target

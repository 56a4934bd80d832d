"""docs/sweeps.md: its recipe is swept as it says, and every command in it is typed."""

import json
import shlex
from pathlib import Path

import forks
import pytest
import tomli
from documents import DOCS, snippets
from kdcore_executors.slurm import Slurm
from typer.testing import CliRunner

from kdcore.cli.main import app
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.sweep import CONTROLS
from kdcore.sweeps.graph import tasks_of
from kdcore.sweeps.points import SweepRequest, read_points

TEXT = (DOCS / "sweeps.md").read_text(encoding="utf-8")
SNIPPETS = snippets("sweeps.md")
RECIPE, *PARTS = [each.text for each in SNIPPETS if each.language == "toml"]
COMMANDS = [
    line for each in SNIPPETS if each.language == "sh" for line in each.text.splitlines() if line
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(RECIPE)


def typed(command):
    """What a command prints, once it ended well."""
    if "--on local" in command:  # its runs are processes
        done = forks.run(*shlex.split(command))
        assert done.returncode == 0, done.stderr
        return done.stdout
    done = CliRunner().invoke(app, shlex.split(command)[1:])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.slow
def test_the_commands(here, monkeypatch):
    monkeypatch.setattr(Slurm, "cancel", lambda self, handles: None)
    for command in COMMANDS:
        if "--cancel" in command:
            Path("runs/.sweep/mine/jobs.json").write_text('{"slurm/a1b2c3d4": "17"}')
        asks_slurm = "--on slurm" in command and "--cancel" not in command
        said = typed(f"{command} --dry-run" if asks_slurm else command)
        if command == COMMANDS[0]:
            assert "8 points, 7 runs" in said
        if command.endswith("--json"):
            nodes = json.loads(said)["nodes"]
            assert len(nodes) == 7 and all(node["finished"] for node in nodes)
    record = json.loads(Path("runs/sweep.json").read_text())
    (example,) = (json.loads(each.text) for each in SNIPPETS if each.language == "json")
    assert record.keys() == example.keys()
    assert example["points"][0].keys() <= record["points"][0].keys()


def test_the_parts_of_recipes(here):
    host = PluginManager()
    for part in PARTS:
        own = tomli.loads(part)
        text = RECIPE[: RECIPE.index("[sweep]")] if isinstance(own.get("sweep"), list) else RECIPE
        Path("part.toml").write_text(f"{text}\n{part}")
        found = read_points(SweepRequest("part.toml"), host).all
        assert len(found) == (8 if text is RECIPE else 5)
        if "stage" in own:
            asked = own["stage"]["student"]["resources"]
            (one, *_) = (t for t in tasks_of(found).values() if t.stage == "student")
            assert {key: getattr(one.resources, key) for key in asked} == asked
        if isinstance(own.get("sweep"), dict):
            Slurm(**own["sweep"]["slurm"])


def test_the_tables_have_every_control_and_executor():
    for name in CONTROLS:
        assert f"| `{name}` |" in TEXT
    for name in PluginManager().provided("executor"):
        assert f"| `{name}" in TEXT
    for option in Slurm.__pydantic_fields__:
        assert f"`{option}`" in TEXT

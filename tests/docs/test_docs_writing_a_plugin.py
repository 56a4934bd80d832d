"""docs/writing-a-plugin.md: every snippet in it is executed."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomli
import typer
from distributions import install
from documents import DOCS, snippets
from packaging.requirements import Requirement
from typer.testing import CliRunner

from kdcore.plugin.discovery import commands
from kdcore.plugin.manager import PluginManager
from kdcore.testing import check_loss

DOCUMENT = "writing-a-plugin.md"
SNIPPETS = snippets(DOCUMENT)
TESTS = ["test_hellinger.py", "test_hellinger_by_fixture.py"]


@pytest.fixture
def written(tmp_path, monkeypatch) -> Path:
    """A folder with every file that the document shows, under the name in its first line."""
    monkeypatch.chdir(tmp_path)
    for number, snippet in enumerate(SNIPPETS):
        if snippet.language != "sh":
            name = snippet.text.splitlines()[0].removeprefix("# ")
            path = tmp_path / (f"{number:02}-{name}" if name.endswith(".toml") else name)
            assert not path.exists()
            path.write_text(snippet.text)
    return tmp_path


def tables(folder: Path, name: str) -> list[dict]:
    return [tomli.loads(path.read_text()) for path in sorted(folder.glob(f"*-{name}"))]


def test_every_snippet_is_of_a_language_that_is_executed_here():
    assert {snippet.language for snippet in SNIPPETS} == {"python", "toml", "sh"}


def test_the_plugins_load_and_their_losses_keep_the_contract(written):
    host = PluginManager(files=["hellinger.py", "options.py", "per_answer.py"])
    for plugin in host.plugins[-3:]:
        assert plugin.status == "on" and plugin.note is None
    hellinger, clipped = (host.provided("loss")[name].cls for name in ("hellinger", "clipped"))
    check_loss(hellinger())
    check_loss(clipped(inner=hellinger(), limit=0.5))
    check_loss(clipped(inner=hellinger(), how="drop"))
    check_loss(host.provided("loss")["ce-per-answer"].cls())


@pytest.mark.slow
def test_the_tests_in_it_pass(written):
    environment = {**os.environ, "PYTHONPATH": str(written)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_entry_point_makes_it_a_plugin(written, monkeypatch):
    project, _ = tables(written, "pyproject.toml")
    points = project["project"]["entry-points"]["kdcore"]
    (file,) = project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    modules = {Path(file).stem: (written / file).read_text()}
    site = install(written / "site", project["project"]["name"], modules, entry_points=points)
    monkeypatch.syspath_prepend(site)
    provided = PluginManager().provided("loss")["hellinger"]
    assert (provided.plugin.name, provided.plugin.distribution) == ("hellinger", "kdcore-hellinger")
    del sys.modules["hellinger"]
    (recipe,) = tables(written, "recipe.toml")
    assert [Requirement(text).name for text in recipe["requires"]] == ["kdcore", "kdcore-hellinger"]


def test_the_verb_works(written, monkeypatch):
    _, project = tables(written, "pyproject.toml")
    points = project["project"]["entry-points"]["kdcore.commands"]
    modules = {"hellinger_verb": (written / "hellinger_verb.py").read_text()}
    install(written / "site", "alpha", modules, entry_points=points, group="kdcore.commands")
    monkeypatch.syspath_prepend(written / "site")
    importlib.invalidate_caches()
    app = typer.Typer()
    app.command()(commands()["distance"].load())
    del sys.modules["hellinger_verb"]
    assert CliRunner().invoke(app, ["0.5", "0.5"]).output == "0.0000\n"


@pytest.mark.slow
def test_the_commands_in_it_work(written):
    lines = [
        line
        for snippet in SNIPPETS
        if snippet.language == "sh"
        for line in snippet.text.splitlines()
    ]
    assert lines
    for line in lines:
        # What `run` would train for minutes, `check` builds.
        words = line.replace("kdcore run", "kdcore check").split()
        assert words[0] == "kdcore"
        command = [sys.executable, "-m", *words]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert re.search("hellinger|mine|no errors", done.stdout)


def test_the_links_lead_somewhere():
    text = (DOCS / DOCUMENT).read_text()
    assert "](hooks.md)" in text
    for example in sorted((DOCS.parent / "examples").iterdir()):
        assert f"`examples/{example.name}`" in text

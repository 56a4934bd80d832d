"""docs/on-policy.md: its recipe has no errors, and what it names is there."""

import re
import shlex
from pathlib import Path

from documents import DOCS, snippets
from typer.testing import CliRunner

from kdcore.cli.main import app
from kdcore.plugin.manager import PluginManager

TEXT = (DOCS / "on-policy.md").read_text(encoding="utf-8")
RECIPE, COMMAND, KEPT, CHOSEN = snippets("on-policy.md")


def test_the_recipes_have_no_errors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (RECIPE.language, COMMAND.language) == ("toml", "sh")
    Path("onpolicy.toml").write_text(RECIPE.text)
    for command, recipes in ((COMMAND, 6), (KEPT, 2), (CHOSEN, 1)):
        _, *words = shlex.split(command.text)
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        assert done.output.count("no errors") == recipes


def test_the_losses_and_writers_of_the_table_are_there():
    table = TEXT.partition("## Methods")[2].partition("\n## ")[0]
    host, rows = (
        PluginManager(),
        re.findall(r"^\| [^|]+ \| ([^|]+) \| ([^|]+) \|$", table, re.M)[1:],
    )
    known = {"rollout": host.provided("rollout"), "loss": host.provided("loss")}
    assert len(rows) == 7
    for writers, losses in rows:
        named = re.findall(r"`([a-z0-9-]+)`", writers)
        assert {*named} & known["rollout"].keys(), writers
        assert {*re.findall(r"`([a-z0-9-]+)`", losses)} <= {*known["loss"], "where", "beta"}, losses

"""The pages of the command line: exit codes, the list of verbs, examples that parse, completion."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from documents import DOCS, snippets
from rich.text import Text
from typer.testing import CliRunner

import kdcore
from kdcore import KdcoreError
from kdcore.cli.completion import complete_arguments
from kdcore.cli.main import app
from kdcore.errors import Interrupted
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe
from kdcore.training.signals import SIGNALS, known_as

pytestmark = pytest.mark.slow

WRITER = runpy.run_path(str(DOCS / "export_commands.py"))
GROUP = typer.main.get_command(app)


def leaves(commands, before=()):
    for name, command in commands.items():
        inner = getattr(command, "commands", None)
        yield from leaves(inner, (*before, name)) if inner else [((*before, name), command)]


def verbs():
    with GROUP.make_context("kdcore", [], resilient_parsing=True) as ctx:
        names = re.findall(r"^## kdcore (\S+)", (DOCS / "commands.md").read_text(), re.M)
        return {name: WRITER["command_of"](GROUP, ctx, name) for name in dict.fromkeys(names)}


LEAVES = dict(leaves(verbs()))


def test_the_page_is_what_the_script_writes():
    written = (DOCS / "commands.md").read_text()
    assert written == WRITER["page"](), "python docs/export_commands.py writes it anew"


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_every_help_has_examples_that_can_be_typed(words):
    heading, *examples = (LEAVES[words].epilog or "").split("\n\n")
    assert heading == "Examples:" and examples
    for example in examples:
        typed = shlex.split(example)
        assert typed[: len(words) + 1] == ["kdcore", *words]
        LEAVES[words].make_context(" ".join(words), typed[len(words) + 1 :])


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_help_shows_them(words):
    said = CliRunner().invoke(app, [*words, "--help"])
    assert said.exit_code == 0
    assert "Examples:" in said.output and f"kdcore {' '.join(words)}" in said.output


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_help_has_no_words_in_square_brackets_which_would_not_be_shown(words):
    verb = LEAVES[words]
    for text in filter(None, (verb.help, verb.epilog, *(each.help for each in verb.params))):
        assert Text.from_markup(text).plain == text


def test_the_table_of_exit_codes_is_the_codes():
    rows = re.findall(r"^\| ([\d, ]+) \|", (DOCS / "command-line.md").read_text(), re.M)
    shown = [int(code) for row in rows for code in row.split(",")]

    def below(cls):
        return {cls} | {each for sub in cls.__subclasses__() for each in below(sub)}

    kdcores = [each for each in below(KdcoreError) if each.__module__ == "kdcore.errors"]
    codes = {each.exit_code for each in kdcores if each is not Interrupted}
    handled = set(map(known_as, SIGNALS))
    assert {*shown} == codes | {0} | {Interrupted("", number).exit_code for number in handled}
    assert len(shown) == len({*shown})


def test_the_snippets_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (command,) = [each.text for each in snippets("command-line.md") if each.language == "sh"]
    (recipe,) = [each.text for each in snippets("command-line.md") if each.language == "toml"]
    said = CliRunner().invoke(app, shlex.split(command)[1:])
    assert "$defs" in json.loads(said.output)
    Path("mine.toml").write_text(recipe)
    assert read_recipe("mine.toml", PluginManager()).stages


def test_the_version(tmp_path):
    from importlib.metadata import version

    said = CliRunner().invoke(app, ["--version"])
    assert (said.exit_code, said.output) == (0, f"kdcore {version('kdcore')}\n")
    assert kdcore.__version__ == version("kdcore")


def completed(typed, folder):
    """What bash is told after the words of `typed`; the last is incomplete."""
    environment = {
        **os.environ,
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split(" ")) - 1),
        "_KDCORE_COMPLETE": "complete_bash",
    }
    code = "import sys; sys.argv = ['kdcore']; from kdcore.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "typed, expected",
    [
        ("kdcore sch", ["schema"]),
        ("kdcore new ", ["plugin", "recipe"]),
        ("kdcore run quickstart_r", ["quickstart_rho"]),
        ("kdcore check mine", ["mine.toml"]),
        ("kdcore plan quickstart_r", ["quickstart_rho"]),
        ("kdcore new recipe quickstart_r", ["quickstart_rho"]),
        ("kdcore run quickstart --st", ["--stage"]),
        ("kdcore doctor quickstart --s", ["--set", "--stage"]),
        ("kdcore show a", ["a-11111111"]),
        ("kdcore rm --out other ", ["b-22222222", "last"]),
        ("kdcore generate la", ["last"]),
        ("kdcore plugins skew-r", ["skew-reverse-kl"]),
        ("kdcore plugins tracke", ["tracker"]),
        ("kdcore run quickstart --log track", ["tracker"]),
    ],
)
def test_a_shell_completes(typed, expected, tmp_path):
    (tmp_path / "mine.toml").write_text("")
    for run in ("runs/a-11111111", "other/b-22222222"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "recipe.toml").write_text("")
    assert sorted(completed(typed, tmp_path)) == sorted(expected)


def test_verbs_of_others_are_completed_by_their_metavar(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    alone = typer.Typer()

    @alone.command()
    def weigh(thing: str = typer.Argument(metavar="RECIPE"), other: str = typer.Argument("x")):
        """Weigh it."""

    command = typer.main.get_command(alone)
    complete_arguments(command, PluginManager)
    with command.make_context("weigh", [], resilient_parsing=True) as ctx:
        thing, other = command.params[:2]
        assert "quickstart" in [each.value for each in thing.shell_complete(ctx, "quick")]
        assert other.shell_complete(ctx, "quick") == []

"""docs/your-model.md: its commands run, and its table of learning rates is the code's."""

import math
import re
import shlex

import pytest
from documents import DOCS, snippets
from own_models import lay_own_models
from typer.testing import CliRunner

from kdcore.cli.main import app
from kdcore.commands.drafts.student_choice import RATES

COMMANDS = [line for snippet in snippets("your-model.md") for line in snippet.text.splitlines()]
LIMITS = {"50M": 5e7, "200M": 2e8, "1B": 1e9}


@pytest.mark.slow
def test_the_commands_run_one_after_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lay_own_models(tmp_path)
    for command in COMMANDS:
        name, verb, *words = shlex.split(command)
        assert name == "kdcore"
        short = ["--set", "train.steps=2", "-p", "no:panel"] if verb == "run" else []
        said = CliRunner().invoke(app, [verb, *words, *short])
        assert said.exit_code == 0, said.output


def test_the_table_of_learning_rates_is_the_codes():
    rows = re.findall(
        r"^\| (up to \S+|more) \| (\S+) \| (\S+) \|$", (DOCS / "your-model.md").read_text(), re.M
    )
    assert len(rows) == 4
    for size, *rates in rows:
        limit = LIMITS.get(size.split()[-1], math.inf)
        for table, rate in zip(("loaded", "fresh"), rates, strict=True):
            found = next(each for most, each in RATES[table] if limit <= most)
            assert found == float(rate), (size, table)

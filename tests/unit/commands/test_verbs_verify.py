"""`kdcore plugins NAME --verify`: a word on every part of a plugin."""

import re

import pytest
import typer

from kdcore import UsageError
from kdcore.commands.plugins import plugins

GOOD = """
from kdcore import Loss, Selection, component, hookimpl

@component
class Size(Loss):
    name = "size"
    needs_teacher = False

    def per_token(self, student, teacher, labels):
        return student.square().mean(-1)

@component
class Share(Selection):
    name = "share"
    part: float

@hookimpl
def kdcore_losses():
    return [Size]

@hookimpl
def kdcore_selections():
    return [Share]
"""


def verified(tmp_path, text, capsys):
    path = tmp_path / "kdcore_mine.py"
    path.write_text(text)
    code = 0
    try:
        plugins("mine", plugins=[str(path)], verify=True)
    except typer.Exit as ended:
        code = ended.exit_code
    return code, re.sub(r" +", " ", capsys.readouterr().out)


def test_what_keeps_its_contract_and_what_needs_options(tmp_path, capsys):
    code, said = verified(tmp_path, GOOD, capsys)
    assert code == 0
    assert "imports kept" in said and "loss size kept" in said
    assert "selection share not checked part must be given" in said


def test_a_broken_component_ends_with_3_and_its_sentence(tmp_path, capsys):
    code, said = verified(tmp_path, GOOD.replace(".mean(-1)", ".mean()"), capsys)
    assert code == 3
    assert "loss size broken size: returned torch.float32 of shape ()" in said


def test_a_component_that_raises_is_broken(tmp_path, capsys):
    code, said = verified(tmp_path, GOOD.replace("student.square().mean(-1)", "1 / 0"), capsys)
    assert code == 3
    assert "loss size broken raised ZeroDivisionError: division by zero" in said


def test_private_imports_are_named(tmp_path, capsys):
    text = "import kdcore.hashing\nfrom kdcore.models.head import nll_from_logits\n" + GOOD
    code, said = verified(tmp_path, text, capsys)
    assert code == 3
    assert "private and may change: kdcore.hashing, kdcore.models.head" in " ".join(said.split())


def test_one_plugin_is_asked_for():
    with pytest.raises(UsageError, match="kdcore plugins NAME --verify"):
        plugins(verify=True)
    with pytest.raises(UsageError, match="did you mean 'losses'"):
        plugins("loses", verify=True)


def test_bounds_and_a_table_to_paste_are_shown(capsys):
    plugins("noisy")
    said = capsys.readouterr().out
    assert re.search(r"share +float +0\.5 +>= 0, <= 1", said)
    assert '[data]\n  use = "noisy"' in said and "# source =   required: data" in said

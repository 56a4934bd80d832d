"""`kdcore plugins NAME --verify`: a word on every part of a plugin."""

import re
from importlib.metadata import EntryPoint

import pytest
import typer

from kdcore import UsageError
from kdcore.commands.plugins import plugins
from kdcore.plugin.discovery import commands

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
        plugins("mine", plugins=[str(path)], verified=True)
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
        plugins(verified=True)
    with pytest.raises(UsageError, match="did you mean 'losses'"):
        plugins("loses", verified=True)


def test_bounds_and_a_table_to_paste_are_shown(capsys):
    plugins("noisy")
    said = capsys.readouterr().out
    assert re.search(r"share +float +0\.5 +>= 0, <= 1", said)
    assert '[data]\n  use = "noisy"' in said and "# source =   required: data" in said


VERB = '''
from typing import Annotated
import typer
import kdcore

def pace(run: Annotated[str, typer.Argument(help="A run.")] = "last") -> None:
    """Print how fast a run learned."""
'''


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (VERB, 0, ["imports kept", "verb pace kept"]),
        (VERB.replace('"""Print how fast a run learned."""', "..."), 3, ["it has no docstring"]),
        (VERB.replace('(help="A run.")', "()"), 0, ["verb pace kept no help for run"]),
        (VERB + "import kdcore.files\n", 3, ["imports broken private", "kdcore.files"]),
        ("import nothing_like_it", 3, ["verb pace broken the verb 'pace' cannot be loaded"]),
    ],
)
def test_a_verb(tmp_path, capsys, monkeypatch, text, code, words):
    name = f"verb_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("pace", f"{name}:pace", "kdcore.commands")
    monkeypatch.setattr("kdcore.commands.plugins.commands", lambda: {"pace": point})
    ended = 0
    try:
        plugins("pace", verified=True)
    except typer.Exit as end:
        ended = end.exit_code
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert ended == code
    assert [word for word in words if word not in said] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(commands()))
def test_kdcores_own_verbs_keep_the_contract(name, capsys):
    plugins(name, verified=True)
    assert re.search(rf"verb {name} +kept *$", capsys.readouterr().out)


def test_a_component_gives_its_own_reason(tmp_path, capsys):
    own = "    def __post_init__(self):\n        raise ValueError('it needs a file')\n"
    text = GOOD.replace('    name = "size"\n', f'    name = "size"\n{own}')
    assert text != GOOD
    _, said = verified(tmp_path, text, capsys)
    assert "loss size not checked it needs a file" in said

"""`kdcore show --data`: rows as the student will see them, with their mask."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import typer
from recorded_runs import expect
from typer.testing import CliRunner
from whole_runs import recipe_text

from kdcore import UsageError
from kdcore.analysis.rows import RowSample, SampledRow
from kdcore.commands.rows import data as verb
from kdcore.commands.show import show

TOKENIZER = tiny.byte_tokenizer(tiny.TEXTS * 3, 400)
RECIPE = recipe_text(
    {
        "tokenizer.vocab_size": 300,
        "data.stories": 30,
        "data.validation": 5,
        "data.block": 64,
        "train.steps": 2,
    },
    """\
[stage.small]
[stage.large.data]
block = 96
""",
)


def piece(document, prompt, answer, offset=0):
    """A document, or what is left of it after `offset` tokens, as the columns of a row."""
    parts = [TOKENIZER.encode(part, add_special_tokens=False) for part in (prompt, answer)]
    ids = [*parts[0], *parts[1], TOKENIZER.eos_token_id]
    valid = [False] * len(parts[0]) + [True] * (len(parts[1]) + 1)
    valid[0] = False
    places = np.arange(len(ids)) + offset
    return ids, [document] * len(ids), places, valid


def row(index, *pieces):
    ids, document, offset, valid = (np.concatenate(each) for each in zip(*pieces, strict=True))
    return SampledRow(index, ids, document, offset, valid)


def sample(**changes):
    rows = [
        row(16, piece(1232, "Why are you sad?\n", "“Naïve owl” 東京")),
        row(40, piece(3, "", "there was a small fox", 64), piece(9, "She had\n", "a red kite")),
    ]
    about = dict(
        stages=["mine.teacher", "mine.kd"],
        data="stories(block=64)",
        split="train",
        block=64,
        tokenizer=TOKENIZER,
        rows=rows,
        rows_in_all=1_204,
        documents=1_300,
        tokens=70_000,
        cut=12,
        dropped=3,
    )
    return RowSample(**{**about, **changes})


@pytest.fixture
def samples(tmp_path, monkeypatch):
    """What the engine draws; what it was asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    asked = SimpleNamespace(given=[sample()], options=None, recipe=None)

    def read_recipe(name, host, *, sets):
        asked.recipe = (name, [*sets])
        return "a recipe"

    def sample_rows(recipe, **options):
        assert recipe == "a recipe"
        asked.options = options
        return iter(asked.given)

    monkeypatch.setattr(verb, "read_recipe", read_recipe)
    monkeypatch.setattr(verb, "sample_rows", sample_rows)
    return asked


def said(capsys, **options):
    show(["mine"], data=True, **options)
    return capsys.readouterr().out


def test_rows_with_their_mask(samples, capsys):
    expect("data_80", said(capsys))
    assert samples.options == {"stage": None, "split": "train", "count": 3}


@pytest.mark.parametrize("width", [40, 140])
def test_every_width(samples, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    text = said(capsys)
    assert max(map(len, text.splitlines())) <= width
    assert "⟨Why are you sad?↵\n⟩“Naïve owl”" in text and "document 1,233" in text


def test_what_was_asked_reaches_the_engine(samples, capsys):
    said(capsys, stage="kd", split="validation", rows=7, sets=["data.block=9"])
    assert samples.options == {"stage": "kd", "split": "validation", "count": 7}
    assert samples.recipe == ("mine", ["data.block=9"])


def test_each_stage_that_sees_other_rows(samples, capsys):
    samples.given.append(sample(stages=["mine.other"], cut=0, dropped=0))
    text = said(capsys)
    assert text.startswith("mine.teacher, mine.kd\n") and "\n\nmine.other\n" in text


def test_all_at_once_in_a_page(samples, capsys, tmp_path):
    samples.given.append(sample(stages=["mine.other"]))
    assert said(capsys, html=tmp_path / "rows.html") == ""
    html = (tmp_path / "rows.html").read_text(encoding="utf-8")
    assert html.count("<h1>") == 2 and "<title>mine.teacher, mine.kd, mine.other</title>" in html
    assert '<i class="never" title="prompt, id' in html
    assert '<span class="trained special" title="trained, id 0">&lt;|end|&gt;</span>' in html


def test_for_programs(samples, capsys):
    first, second = json.loads(said(capsys, as_json=True))
    assert (first["row"], first["rows"], first["block"]) == (17, 1_204, 64)
    assert first["runs"] == ["mine.teacher", "mine.kd"]
    assert "".join(first["text"]) == "Why are you sad?\n“Naïve owl” 東京<|end|>"
    assert first["state"][0] == "first" and first["state"][1] == "prompt"
    assert first["state"][-1] == "trained"
    assert set(second["document"]) == {4, 10}
    lengths = {len(second[key]) for key in ("tokens", "text", "state", "document")}
    assert len(lengths) == 1


@pytest.mark.parametrize("names", [None, ["a", "b"]])
def test_one_recipe_is_asked_for(names):
    with pytest.raises(UsageError, match="show --data takes one recipe"):
        show(names, data=True)


@pytest.mark.slow
def test_the_verb_on_a_recipe(tmp_path):
    (tmp_path / "mine.toml").write_text(RECIPE)
    app = typer.Typer()
    app.command()(show)

    def typed(*words):
        command = [str(tmp_path / "mine.toml"), "--data", *words]
        return CliRunner().invoke(app, command, catch_exceptions=False)

    text = typed("--rows", "2").stdout
    assert "mine.small\n" in text and "mine.large\n" in text
    assert text.count("shown      2 of them") == 2 and "documents  30" in text
    rows = json.loads(typed("--stage", "large", "--rows", "2", "--json").stdout)
    assert [one["runs"] for one in rows] == [["mine.large"]] * 2
    assert json.loads(typed("--stage", "large", "--rows", "2", "--json").stdout) == rows
    with pytest.raises(UsageError, match="has no stage 'larger': small, large"):
        typed("--stage", "larger")

"""`kdcore doctor`: what it shows of models, tokenizer and data, and what it finds."""

import json

import chats
import pytest
import tiny
from own_models import ROWS, lay_own_models
from typer.testing import CliRunner

from kdcore.cli.main import app
from kdcore.commands.checks.examination import examine
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe

pytestmark = pytest.mark.slow

RECIPE = """
[student]
model = "student"
[teacher]
use = "hf"
model = "teacher"
[data]
use = "sft"
path = "answers.jsonl"
template = "plain"
block = 128
validation_share = 0.1
[[loss]]
use = "kl"
[train]
steps = 1
batch = 2
lr = 1e-3
"""
STAGED = """
[tokenizer]
use = "bpe"
vocab_size = 300
[data]
use = "stories"
stories = 30
validation = 5
block = 128
[student.config]
model_type = "llama"
hidden_size = 16
intermediate_size = 24
num_hidden_layers = 2
num_attention_heads = 2
[train]
steps = 1
lr = 1e-3
[[loss]]
use = "ce"
[stage.big]
[stage.small.student.config]
num_hidden_layers = 1
[stage.small.teacher]
use = "hf"
model = "@big"
[[stage.small.loss]]
use = "kl"
"""


@pytest.fixture(scope="module")
def host():
    return PluginManager()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lay_own_models(tmp_path)
    (tmp_path / "mine.toml").write_text(RECIPE)
    (tmp_path / "staged.toml").write_text(STAGED)
    return tmp_path


def examined(host, name="mine.toml", sets=(), only=None):
    return [*examine(read_recipe(name, host, sets=sets), only)]


def found(host, degree, **options):
    return [
        each.text
        for one in examined(host, **options)
        for each in one.findings
        if each.degree == degree
    ]


def test_a_valid_recipe_has_neither_errors_nor_warnings(here, host):
    assert found(host, "error") == found(host, "warning") == []


def test_the_models_are_those_of_the_recipe(here, host):
    (one,) = examined(host)
    student, teacher = one.models
    assert (student.name, teacher.name) == ("student", "teacher")
    model = tiny.model(vocabulary=len(tiny.byte_tokenizer()))
    assert student.parameters == sum(each.numel() for each in model.parameters())
    assert (student.tied, student.reach, teacher.reach) == (False, 256, 512)
    assert one.ids == student.width == len(tiny.byte_tokenizer())


def test_the_rows_are_those_that_the_run_trains_on(here, host):
    (one,) = examined(host)
    train, validation = one.samples
    assert (train.documents, validation.documents) == (108, 12)
    assert len(train.lengths) == 108 and train.lengths.max() <= 128
    ends, documents = one.ended
    assert ends == documents > 0


@pytest.mark.parametrize(
    "sets, says",
    [
        (["data.block=400"], "longer than the student's 256 positions"),
        (["data.block=600"], "longer than the 512 positions of the teacher"),
        (["data.path=absent.jsonl"], "absent.jsonl"),
    ],
)
def test_an_error_is_what_the_run_would_report(here, host, sets, says):
    assert any(says in text for text in found(host, "error", sets=sets))


def test_other_ids_are_an_error(here, host):
    tiny.save(here / "other", tokenizer=tiny.llama_tokenizer(), max_position_embeddings=256)
    (text, *_) = found(host, "error", sets=["teacher.model=other"])
    assert "the tokenizers differ" in text


def test_a_teacher_with_another_template_is_a_warning(here, host):
    tiny.save(here / "a", tokenizer=chats.chat_tokenizer())
    tiny.save(here / "b", tokenizer=chats.chat_tokenizer(chats.STRIPPING))
    said = found(host, "warning", sets=["student.model=a", "teacher.model=b"])
    assert any("other special tokens than the student" in text for text in said)


def test_ends_that_are_not_learned_are_a_warning(here, host):
    sets = ["data={use='stories', stories=30, validation=5, block=128, eos=false}"]
    assert any(
        "do not end with a learned end token" in each for each in found(host, "warning", sets=sets)
    )


def beginning_with_bos():
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny.llama_tokenizer()
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos[0]} $A", special_tokens=[bos]
    )
    return tokenizer


@pytest.mark.parametrize("bos, warned", [("true", False), ("false", True)])
def test_documents_without_what_the_tokenizer_puts_before_them(here, host, bos, warned):
    (here / "student.txt").write_text("\n\n".join(tiny.TEXTS * 9))
    for name in ("student", "teacher"):
        tiny.save(here / name, tokenizer=beginning_with_bos(), max_position_embeddings=256)
    data = f"{{use='text', path='student.txt', block=128, validation_share=0.2, bos={bos}}}"
    (one,) = examined(host, sets=[f"data={data}"])
    said = [each.text for each in one.findings if each.degree == "warning"]
    assert any("no document begins with '<s>'" in text for text in said) == warned


def test_documents_that_are_cut_are_a_warning(here, host):
    sets = ["data={use='stories', stories=30, validation=5, block=32}"]
    assert any("longer than a row of 32" in each for each in found(host, "warning", sets=sets))


def test_rows_of_prompts_are_a_warning(here, host):
    rows = [{"instruction": row["instruction"] * 4, "output": "1"} for row in ROWS]
    (here / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert any("the rest is prompts" in each for each in found(host, "warning"))


def test_a_teacher_that_is_another_stage_is_looked_at_without_its_weights(here, host):
    big, small = examined(host, "staged.toml")
    assert [model.name for model in small.models] == ["fresh", "@big"]
    assert small.models[1].parameters == big.models[0].parameters > small.models[0].parameters
    assert not [each for each in small.findings if each.degree == "error"]
    assert not (here / "runs").exists()


def test_one_page_on_80_columns(here, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    said = CliRunner().invoke(app, ["doctor", "staged.toml", "--stage", "small"])
    assert said.exit_code == 0, said.output
    lines = said.output.splitlines()
    assert lines[0] == "staged.small" and len(lines) <= 50
    assert max(map(len, lines)) <= 80
    for label in (
        "student",
        "teacher 'hf'",
        "tokenizer",
        "special tokens",
        "chat template",
        "data",
    ):
        assert any(line.strip().startswith(label) for line in lines), label
    assert any("30 documents" in line for line in lines)


def test_an_error_gives_2(here):
    said = CliRunner().invoke(app, ["doctor", "mine.toml", "--set", "data.block=400"])
    assert said.exit_code == 2
    assert "error: data.block = 400" in said.output


def test_an_unknown_stage_is_reported(here):
    said = CliRunner().invoke(app, ["doctor", "staged.toml", "--stage", "tiny"])
    assert "has no stage 'tiny': big, small" in str(said.exception)

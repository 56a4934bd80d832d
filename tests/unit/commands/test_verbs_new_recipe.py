"""`kdcore new recipe --teacher --student --data`: recipes without faults, or one sentence."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import tomli
from hypothesis import given
from hypothesis import strategies as some
from own_models import ROWS, lay_own_models
from transformers import AutoConfig, AutoModelForCausalLM

from kdcore import UsageError
from kdcore.analysis.parameters import parameters_of
from kdcore.commands.drafts.recipe_template import batch_of
from kdcore.commands.drafts.student_choice import parameters_of_shape, shape_of
from kdcore.commands.new import recipe
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe

pytestmark = pytest.mark.slow

STORIES = "\n\n".join(f"Story {n}.\nIt is about {n} foxes." for n in range(60))
LINES = "\n".join(f"Story {n} is about {n} foxes." for n in range(60))


@pytest.fixture(scope="module")
def host():
    return PluginManager()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    lay_own_models(folder)
    return folder


@pytest.fixture
def here(tmp_path, models, monkeypatch):
    for name in ("teacher", "student"):
        (tmp_path / name).symlink_to(models / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def as_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def made(name, content, host, student="student", **options):
    """The written recipe's table, and its stage: `check` finds no errors."""
    Path(name).write_text(content, encoding="utf-8")
    recipe("mine.toml", teacher="teacher", student=student, data=name, **options)
    found = read_recipe("mine.toml", host)
    return tomli.loads(Path("mine.toml").read_text()), found.build()


PROMPTS = [{"prompt": row["instruction"], "completion": row["output"]} for row in ROWS]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": row["instruction"]},
            {"role": "assistant", "content": row["output"]},
        ]
    }
    for row in ROWS
]


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.jsonl", as_lines(ROWS)),
        ("a.json", json.dumps(ROWS)),
        ("a.jsonl", as_lines(PROMPTS)),
        ("a.jsonl", as_lines(CHATS)),
    ],
)
def test_what_is_asked_and_answered(here, host, name, content):
    table, stage = made(name, content, host)
    assert table["data"]["use"] == "sft"
    assert table["data"]["template"] == "plain"  # this tokenizer has none
    assert "fields" not in table["data"]
    rows = stage.data.make_rows("train", tiny.byte_tokenizer(), seed=0, epoch=0)
    assert rows.cut == 0


@pytest.mark.parametrize(
    "name, content, options",
    [
        ("a.txt", STORIES, {}),
        ("a.md", STORIES, {}),
        ("a.txt", STORIES.replace("\n\n", "\n<|endoftext|>\n"), {"separator": "<|endoftext|>"}),
        ("a.txt", LINES, {"separator": "\n"}),
        ("a.jsonl", as_lines({"text": each} for each in LINES.split("\n")), {}),
        (
            "a.jsonl",
            as_lines({"id": 3, "story": each} for each in LINES.split("\n")),
            {"column": "story"},
        ),
        (
            "a.jsonl",
            as_lines({"id": 3, "words": each} for each in LINES.split("\n")),
            {"column": "words"},
        ),
    ],
)
def test_text(here, host, name, content, options):
    table, stage = made(name, content, host)
    others = {"use", "path", "block", "validation_share"}
    assert table["data"]["use"] == "text"
    assert {k: v for k, v in table["data"].items() if k not in others} == options
    assert len([*stage.data.texts("train"), *stage.data.texts("validation")]) == 60


def test_answers_as_text_where_it_is_asked_for(here, host):
    table, _ = made("a.jsonl", as_lines(ROWS), host, kind="text")
    assert (table["data"]["use"], table["data"]["column"]) == ("text", "output")


def test_compressed_text_is_looked_at_too(here, host):
    import gzip

    Path("a.txt.gz").write_bytes(gzip.compress(LINES.encode()))
    recipe("mine.toml", teacher="teacher", student="student", data="a.txt.gz")
    assert read_recipe("mine.toml", host).build().data.separator == "\n"


def test_parquet(here, host):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), "a.parquet")
    recipe(teacher="teacher", student="student", data="a.parquet")
    assert read_recipe("a.toml", host).build().data.name == "sft"


QUESTIONS = [{"question": r["instruction"], "answer": r["output"], "context": "So."} for r in ROWS]


def test_names_of_the_file_are_mapped(here, host):
    table, stage = made("a.jsonl", as_lines(QUESTIONS), host)
    assert table["data"]["fields"] == {
        "instruction": "question",
        "output": "answer",
        "input": "context",
    }
    first = next(iter(stage.data.dialogues("train")))
    assert [each["role"] for each in first.messages] == ["user", "assistant"]


@pytest.mark.parametrize("ending, delimiter", [("csv", ","), ("tsv", "\t")])
def test_csv(here, host, ending, delimiter):
    rows = [(row["instruction"], f'"{row["output"]}"') for row in ROWS]
    lines = [delimiter.join(("prompt", "completion")), *(delimiter.join(row) for row in rows)]
    table, _ = made(f"a.{ending}", "\n".join(lines), host)
    assert table["data"]["use"] == "sft"


def test_the_values_are_those_that_suit_the_models_and_the_file(here, host):
    table, stage = made("a.jsonl", as_lines(ROWS), host)
    assert table["student"] == {"model": "student"}
    assert table["teacher"] == {"use": "hf", "model": "teacher"}
    assert [(each["use"], each["weight"]) for each in table["loss"]] == [("ce", 0.5), ("kl", 0.5)]
    assert table["loss"][1]["temperature"] == 1.0
    train = stage.train
    assert (train.epochs, train.lr) == (1, 1e-4)
    rows = stage.data.make_rows("train", tiny.byte_tokenizer(), seed=0, epoch=0)
    fits = rows.split.lengths <= stage.data.block
    assert fits.mean() >= 0.98 and (rows.split.lengths <= stage.data.block // 2).mean() < 0.98
    assert train.batch <= len(rows)  # one epoch is one step at least


def test_every_value_that_is_chosen_has_its_reason(here, host):
    made("a.jsonl", as_lines(ROWS), host)
    lines = Path("mine.toml").read_text().splitlines()
    chosen = ("block", "validation_share", "weight", "temperature", "epochs", "batch", "lr")
    for line in lines:
        if line.split(" = ")[0] in chosen:
            assert "  # " in line, line


def test_long_documents_get_no_more_than_both_models_reach(here, host):
    table, _ = made("a.txt", "\n\n".join("A long story. " * 400 for _ in range(9)), host)
    assert table["data"]["block"] == 256  # the student's, of 512 and 256


@pytest.mark.parametrize(
    ("rows", "batch"), [(1, 1), (3, 3), (20, 4), (199, 4), (400, 8), (1599, 16), (1600, 32)]
)
def test_an_epoch_has_fifty_steps_where_it_can(rows, batch):
    assert batch_of(rows) == batch


def test_a_fresh_student_has_the_teachers_tokenizer(here, host):
    table, stage = made("a.jsonl", as_lines(ROWS), host, student="2M")
    assert table["tokenizer"] == {"use": "hf", "model": "teacher"}
    assert stage.student.config["model_type"] == "llama"
    assert stage.data.block <= stage.student.config["max_position_embeddings"]
    assert stage.train.lr == 1e-3


@given(some.floats(5.5, 10), some.sampled_from([300, 32_000, 151_665]))
def test_a_size_is_nearly_met_or_refused(exponent, ids):
    wanted = 10**exponent
    try:
        shape = shape_of(wanted, ids, "so many")
    except UsageError as error:
        assert "--student" in str(error)
        assert wanted < parameters_of_shape(shape_of(1e8, ids, ""), ids)
        return
    assert abs(parameters_of_shape(shape, ids) / wanted - 1) < 0.2
    assert shape["hidden_size"] in {n * shape["num_attention_heads"] for n in (32, 64)}


@pytest.mark.parametrize("wanted", [5e6, 8e6, 20e6, 60e6])
def test_a_student_is_wider_than_deep_with_a_large_vocabulary_too(wanted):
    shape = shape_of(wanted, 49_152, "so many")
    assert 10 < shape["hidden_size"] / shape["num_hidden_layers"] < 200


def test_the_parameters_are_those_of_the_model():
    shape = shape_of(2e6, 300, "2M")
    config = AutoConfig.for_model(**shape, vocab_size=300)
    assert parameters_of(AutoModelForCausalLM.from_config(config))[0] == parameters_of_shape(
        shape, 300
    )


def bert(folder):
    config = AutoConfig.for_model("bert", vocab_size=300, architectures=["BertForMaskedLM"])
    config.save_pretrained(folder)


def t5(folder):
    AutoConfig.for_model("t5", vocab_size=300).save_pretrained(folder)


def write(content, name="a.jsonl"):
    data = content if isinstance(content, bytes) else content.encode()
    return lambda: Path(name).write_bytes(data)


FAULTS = {
    "missing": (lambda: None, {}, "there is no file 'a.jsonl'"),
    "a folder": (lambda: Path("a.jsonl").mkdir(), {}, "is a folder"),
    "empty": (write(""), {}, "a.jsonl is empty"),
    "no record": (write("[]", "a.json"), {"data": "a.json"}, "no usable record"),
    "blank texts": (write(as_lines([{"text": " "}] * 3)), {}, "no usable record"),
    "blank answers": (
        write(as_lines({"instruction": "a", "output": ""} for _ in range(3))),
        {},
        "has an answer to learn",
    ),
    "blank lines": (write("\n\n \n", "a.txt"), {"data": "a.txt"}, "only blank lines"),
    "one document": (write("all", "a.txt"), {"data": "a.txt"}, "holds one document"),
    "numbers alone": (write(as_lines([{"a": 1}] * 3)), {}, "no column of it has text"),
    "two formats": (write(as_lines([*ROWS, *CHATS])), {}, "one file holds records of one format"),
    "two formats, one with other names": (
        write(as_lines([{"question": "a", "answer": "b"}, *CHATS])),
        {},
        "a.jsonl: record 1 (line 1) has question, answer",
    ),
    "lines of text in it": (write(as_lines(ROWS) + "And so on.\n"), {}, "is not JSON"),
    "wrong encoding": (
        write('{"text": "na\xefve"}\n'.encode("latin-1")),
        {},
        "is not UTF-8 at byte",
    ),
    "text in another encoding": (
        write("na\xefve\n\nowl".encode("latin-1"), "a.txt"),
        {"data": "a.txt"},
        "is not UTF-8 at byte",
    ),
    "unknown columns": (write(as_lines([{"a": "x", "b": "y"}] * 3)), {}, "has the columns a, b"),
    "no answers": (write("So it is.", "a.txt"), {"data": "a.txt", "kind": "sft"}, "plain text"),
    "no teacher": (write(as_lines(ROWS)), {"teacher": "./absent"}, "there is no such folder"),
    "a masked teacher": (write(as_lines(ROWS)), {"teacher": "bert"}, "not a causal language model"),
    "an encoder": (write(as_lines(ROWS)), {"teacher": "t5"}, "not a causal language model"),
    "a masked student": (write(as_lines(ROWS)), {"student": "bert"}, "not a causal language model"),
    "other ids": (write(as_lines(ROWS)), {"student": "other"}, "the tokenizers differ"),
    "too small": (write(as_lines(ROWS)), {"student": "20K"}, "too small for a vocabulary"),
    "half an address": (
        write(as_lines(ROWS)),
        {"teacher": "127.0.0.1:8000"},
        "the address of a server begins with http://",
    ),
    "an address of clients": (
        write(as_lines(ROWS)),
        {"teacher": "http://127.0.0.1:9/v1"},
        "leave out /v1 at the end of the address",
    ),
    "no such student": (
        write(as_lines(ROWS)),
        {"student": "./big"},
        "a fresh student is a size, such as --student 20M",
    ),
    "half of the columns": (
        write(as_lines([{"a": "x", "b": "y"}] * 3)),
        {"question": "a"},
        "--question and --answer go together",
    ),
    "other columns": (
        write(as_lines([{"a": "x", "b": "y"}] * 3)),
        {"question": "a", "answer": "c"},
        "has no column 'c'; it has a, b",
    ),
    "no data": (lambda: None, {"data": None}, "--data missing"),
    "no name": (write(as_lines(ROWS)), {"source": "a b.toml"}, "cannot name runs"),
}


def test_columns_of_any_name_are_question_and_answer(here, host, capsys):
    rows = [{"frage": row["instruction"], "antwort": row["output"], "id": "x"} for row in ROWS]
    table, stage = made("a.jsonl", as_lines(rows), host, question="frage", answer="antwort")
    assert table["data"]["fields"] == {"instruction": "frage", "output": "antwort"}
    assert stage.data.name == "sft"
    assert "kdcore generate mine --chat --prompt TEXT" in capsys.readouterr().out


def test_the_students_of_texts_are_not_asked_questions(here, host, capsys):
    made("a.txt", STORIES, host)
    assert "kdcore generate mine --prompt TEXT" in capsys.readouterr().out


@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_is_one_sentence_and_writes_no_file(here, fault):
    lay, changes, said = FAULTS[fault]
    lay()
    bert(here / "bert")
    t5(here / "t5")
    tiny.save(here / "other", tokenizer=tiny.llama_tokenizer())
    before = {*here.iterdir()}
    asked = {"source": "mine.toml", "teacher": "teacher", "student": "student", "data": "a.jsonl"}
    with pytest.raises(UsageError) as raised:
        recipe(**asked | changes)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert {*here.iterdir()} == before


def test_a_full_disk_leaves_no_half_a_recipe(here, monkeypatch):
    write(as_lines(ROWS))()

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, text):
            self.file.write(text[:20])
            raise OSError(errno.ENOSPC, "No space left on device")

    opened = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda p, mode="r", **k: (
            Full(opened(p, mode, **k)) if mode == "x" else opened(p, mode, **k)
        ),
    )
    with pytest.raises(UsageError, match=r"cannot write mine\.toml: No space left"):
        recipe("mine.toml", teacher="teacher", student="student", data="a.jsonl")
    assert not Path("mine.toml").exists()


def test_nothing_is_overwritten(here):
    write(as_lines(ROWS))()
    Path("a.toml").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        recipe(teacher="teacher", student="student", data="a.jsonl")
    assert Path("a.toml").read_text() == "mine"


def test_from_and_models_exclude_each_other(here):
    with pytest.raises(UsageError, match="without FROM"):
        recipe("quickstart", Path("mine"), teacher="teacher", student="student", data="a.jsonl")
    with pytest.raises(UsageError, match="begins FROM another"):
        recipe()


def test_lengths_are_those_of_the_whole_file_where_it_is_small(here, host):
    rows = [*ROWS, {"instruction": "Tell all.", "output": "It was so. " * 12}]
    made("a.jsonl", as_lines(rows), host)
    data = replace(read_recipe("mine.toml", host).build().data, block=4096)
    lengths = np.concatenate(
        [
            data.make_rows(split, tiny.byte_tokenizer(), seed=0, epoch=0).split.lengths
            for split in ("train", "validation")
        ]
    )
    assert f"the longest has {lengths.max():,} tokens" in Path("mine.toml").read_text()

"""docs/data.md: every snippet in it is executed, and what its tables say is so."""

import bz2
import gzip
import json
import logging
import lzma
import re
import shlex
from pathlib import Path

import datasets
import pyarrow
import pytest
from documents import DOCS, snippets
from kdcore_text import Text
from kdcore_text.folders import _WORDS
from kdcore_text.formats import ENDINGS
from kdcore_text.opening import PACKED
from typer.testing import CliRunner

from kdcore import RunError
from kdcore.cli.main import app
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe

DOCUMENT = (DOCS / "data.md").read_text()
SNIPPETS = snippets("data.md")
RECIPES = {
    snippet.text.splitlines()[0].removeprefix("# "): snippet.text
    for snippet in SNIPPETS
    if snippet.language == "toml"
}
PACK = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pyarrow.compress(content, codec="zstd", asbytes=True),
}
FILES = {
    "corpus/train.txt": "one\n\ntwo\n",
    "corpus/dump.data": '{"story": "three"}\n{"story": "four"}\n',
    "corpus/labelled.jsonl": '{"text": "seven", "domain": "math", "level": 2}\n'
    '{"text": "eight", "domain": "prose", "level": 1}\n',
    "corpus/talk.jsonl": '{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n',
    "corpus/2024-1.csv": "id;text\n1;five\n",
    "corpus/older/a/b.jsonl.gz": gzip.compress(b'{"text": "six"}\n'),
    "books/a.csv": "id,text\n1,a\n",
    "books/b.csv": "id,text\n1,b\n",
    "books/cover.png": b"\x89PNG",
    "books/notes.txt": "no",
    "books/old.jsonl": '{"text": "no"}\n',
    "books/README.md": "no",
}


@pytest.fixture(autouse=True)
def corpus(tmp_path, monkeypatch):
    """The folder that the document's recipes lie in, with the files that they name."""
    monkeypatch.chdir(tmp_path)
    for name, content in {**RECIPES, **FILES}.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def texts(path, **options):
    data = Text(path=path, **options)
    return sorted([*data.texts("train"), *(data.texts("validation") if options else [])])


def test_every_snippet_is_of_a_language_that_is_executed_here():
    assert [snippet.language for snippet in SNIPPETS] == [
        "toml",
        "sh",
        *["toml"] * 4,
        "text",
        "toml",
    ]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("plain.toml", ["one", "two"]),
        ("format.toml", ["four", "three"]),
        ("domains.toml", ["eight", "seven"]),
        ("mixed.toml", ["User:\na\n\nAssistant:\nb", "User:\nc\n\nAssistant:\nd", "one", "two"]),
        ("patterns.toml", ["five", "six"]),
    ],
)
def test_recipes_read_what_they_name(name, found):
    data = read_recipe(name, PluginManager()).build().data
    assert not list(data.missing())
    assert sorted([*data.texts("train"), *data.texts("validation")]) == found


def test_the_recipe_of_the_hub_has_no_errors():
    named = ["plain", "format", "domains", "mixed", "patterns", "hub"]
    assert list(RECIPES) == [f"{name}.toml" for name in named]
    recipe = read_recipe("hub.toml", PluginManager())
    assert recipe.build().data.config == "sample-10BT"
    recipe.refuse_missing()


def test_the_command_and_what_it_says_where_the_path_is_not_there(tmp_path):
    (command,) = (snippet.text for snippet in SNIPPETS if snippet.language == "sh")
    words = shlex.split(command)[1:]
    assert "no errors" in CliRunner().invoke(app, words).output
    Path("corpus/train.txt").unlink()
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert f"'corpus/train.txt' in {tmp_path}" in done.output


def test_what_is_left_out_is_reported_as_shown(caplog):
    caplog.set_level(logging.INFO, logger="kdcore")
    assert texts("books") == ["a", "b"]
    (shown,) = (snippet.text for snippet in SNIPPETS if snippet.language == "text")
    assert [record.getMessage() for record in caplog.records] == [shown.strip()]


def test_the_table_of_formats_has_every_ending():
    rows = re.findall(r"^\| (`\..*?) \|", DOCUMENT, re.MULTILINE)
    assert set(re.findall(r"`(\.\w+)`", " ".join(rows))) == {*ENDINGS, *PACKED}
    records = [{"text": "one"}, {"text": "two"}]
    table = datasets.Dataset.from_list(records)
    for ending, format in ENDINGS.items():
        path = Path(f"some{ending.upper()}")
        if format == "parquet":
            table.to_parquet(path)
        elif format == "arrow":
            table.save_to_disk("saved")
            next(Path("saved").glob("*.arrow")).rename(path)
        else:
            lines = "".join(json.dumps(each) + "\n" for each in records)
            content = {"text": "one\n\ntwo", "csv": "text\none\ntwo\n", "json": lines}[
                format
            ].encode()
            path.write_bytes(content)
            for packed in PACKED:
                inner = Path(f"some{ending}{packed}")
                inner.write_bytes(PACK[packed](content))
                assert texts(str(inner)) == ["one", "two"]
        assert texts(str(path)) == ["one", "two"]


def test_the_words_of_splits_are_those_that_tell_them():
    (said,) = re.findall(r"by words in the path: (.*?)\. `train-", DOCUMENT, re.DOTALL)
    groups = [tuple(re.findall(r"`(\w+)`", group)) for group in said.split(";")]
    assert [set(group) for group in groups] == [set(words) for words in _WORDS.values()]
    for path in re.findall(r"`([\w./-]+)`", DOCUMENT.split("by words in the path")[1])[10:13]:
        assert {"train", "dev", "valid"} & set(re.findall("[a-z]+", path))


def test_the_ways_to_validate():
    for name in ("train", "valid", "test"):
        Path("parts").mkdir(exist_ok=True)
        Path(f"parts/{name}.csv").write_text(f"text\n{name}\n")
    held_out = [
        ({"validation": "books/*.csv"}, ["a", "b"]),
        ({"validation": "parts"}, ["valid"]),
        ({"validation": "test"}, ["test"]),
        ({}, ["valid"]),
    ]
    for options, found in held_out:
        assert list(Text(path="parts", **options).texts("validation")) == found
    (said,) = Text(path="books").missing()
    assert said.startswith("nothing to validate on in books")
    many = Path("many.txt")
    many.write_text("\n\n".join(map(str, range(8))))
    assert list(Text(path="many.txt", skip=0.5, fraction=0.25).texts("train")) == ["4", "5"]
    assert len(list(Text(path="many.txt", validation_share=0.25).texts("validation"))) == 2
    Path("cut").mkdir()
    Path("cut/a.csv").write_text("text\none\nNA\n")
    assert list(Text(path="cut").texts("train")) == ["one", "NA"]
    assert list(Text(path="cut", split="train[:50%]").texts("train")) == ["one"]
    with pytest.raises(RunError, match="only blank lines or values"):
        list(Text(path="cut", split="train[50%:]").texts("train"))


def test_the_error_of_a_missing_column_lists_those_there_are():
    with pytest.raises(RunError, match="it has id, text"):
        texts("books", column="story", validation_share=0.5)

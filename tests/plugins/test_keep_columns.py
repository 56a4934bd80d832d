"""`keep_columns` of `text` and `sft`: columns of files stay with their documents."""

import csv
import json

import pytest
from datasets import Dataset
from kdcore_sft import Sft
from kdcore_text import Text

from kdcore import RunError
from kdcore.testing.fakes import tiny_tokenizer

RECORDS = [
    {"text": "one and one", "domain": "math", "level": 2, "note": None},
    {"text": " ", "domain": "blank", "level": 0, "note": None},
    {"text": "once upon", "domain": "prose", "level": 1, "note": "long"},
]
ASKED = [
    {"prompt": "1 + 1?", "completion": "2", "domain": "math", "level": 2},
    {"prompt": "Who?", "completion": "me", "domain": "prose", "level": 1},
]


def written(path, records=RECORDS):
    match path.suffix:
        case ".jsonl":
            path.write_text("\n".join(map(json.dumps, records)))
        case ".json":
            path.write_text(json.dumps(records))
        case ".csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, records[0])
                writer.writeheader()
                writer.writerows(records)
        case ".parquet":
            Dataset.from_list(records).to_parquet(path)
        case _:
            Dataset.from_list(records).save_to_disk(path)
    return str(path)


def text(path, *keep, **options):
    return Text(path=path, validation_share=0.4, keep_columns=list(keep), block=32, **options)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "folder"])
def test_columns_of_every_kind_of_file(tmp_path, name):
    path = written(tmp_path / name)
    data = Text(path=path, validation=path, keep_columns=["domain", "level", "note"])
    if name == "folder":
        data = Text(path=path, validation_share=0.1, keep_columns=["domain", "level", "note"])
        data._splits.__dict__["_held_out"] = frozenset()
    assert list(data.documents("train")) == [
        {"text": "one and one", "columns": {"domain": "math", "level": 2}},
        {"text": "once upon", "columns": {"domain": "prose", "level": 1, "note": "long"}},
    ]
    assert list(data.texts("train")) == ["one and one", "once upon"]


def test_cells_of_csv_are_text(tmp_path):
    path = written(tmp_path / "a.csv")
    (one, _) = Text(path=path, validation=path, keep_columns=["level"]).documents("train")
    assert one == {"text": "one and one", "columns": {"level": "2"}}


def test_rows_have_them(tmp_path):
    path = written(tmp_path / "a.jsonl")
    data = Text(path=path, validation=path, keep_columns=["domain"], block=32, rows="one")
    for split in ("train", "validation"):
        rows = data.make_rows(split, tiny_tokenizer(), seed=0, epoch=0)
        found = [dict(each) for row in rows for each in row["columns"]]
        assert found == [{"domain": "math"}, {"domain": "prose"}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_streams_have_them(tmp_path, name):
    path = written(tmp_path / name)
    data = Text(path=path, validation=path, keep_columns=["domain"], block=32, streaming=True)
    rows = list(data.make_rows("train", tiny_tokenizer(), seed=0, epoch=0))
    found = [dict(each) for row in rows for each in row["columns"]]
    assert found == [{"domain": "math"}, {"domain": "prose"}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "folder"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_that_is_not_there_lists_those_that_are(tmp_path, name, streaming):
    path = written(tmp_path / name)
    if name == "folder":
        data = Text(path=path, validation_share=0.4, keep_columns=["domian"])
    else:
        data = Text(path=path, validation=path, keep_columns=["domian"], streaming=streaming)
    with pytest.raises(RunError, match=r"no column 'domian', which keep_columns .* text, domain"):
        list(data.documents("train"))


def test_plain_text_has_none(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\n")
    data = Text(path=str(path), validation=str(path), keep_columns=["domain"])
    with pytest.raises(RunError, match="is plain text and has no columns"):
        list(data.documents("train"))


def test_a_column_of_lists_is_refused(tmp_path):
    path = written(tmp_path / "a.jsonl", [{"text": "a", "tags": ["x"]}])
    data = Text(path=path, validation=path, keep_columns=["tags"])
    with pytest.raises(RunError, match=r"record 1 .*'tags' holds list, .* keeps text and numbers"):
        list(data.documents("train"))


@pytest.mark.parametrize("kind", [Text, Sft])
def test_the_engines_own_column_is_not_the_files(kind):
    with pytest.raises(ValueError, match="source is kdcore's own column"):
        kind(path="a.jsonl", keep_columns=["source"])


def test_without_them_a_fingerprint_is_what_it_was(tmp_path):
    path = written(tmp_path / "a.jsonl")
    for kind in (Text, Sft):
        plain, kept = kind(path=path), kind(path=path, keep_columns=["domain"])
        assert "keep_columns" not in plain.fingerprint()
        assert plain.fingerprint() != kept.fingerprint()


def test_a_subclass_that_gives_its_own_texts_is_heard(tmp_path):
    class Shouting(Text):
        name = "shouting"

        def texts(self, split):
            return (text.upper() for text in super().texts(split))

    path = written(tmp_path / "a.jsonl")
    assert next(iter(Shouting(path=path, validation=path).documents("train"))) == "ONE AND ONE"


# Dialogues


def sft(path, *keep):
    return Sft(path=path, validation=path, template="plain", keep_columns=list(keep), block=64)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_dialogues_keep_theirs(tmp_path, name, caplog):
    path = written(tmp_path / name, ASKED)
    with caplog.at_level("INFO"):
        for _ in range(2):  # made, and read again from disk
            rows = sft(path, "domain").make_rows("train", tiny_tokenizer(), seed=0, epoch=0)
            assert [each["domain"] for each in rows.columns()] == ["math", "prose"]
    assert "does not read level" in caplog.text and "domain" not in caplog.text


def test_other_columns_are_rebuilt(tmp_path):
    path = written(tmp_path / "a.jsonl", ASKED)
    first = sft(path, "domain").make_rows("train", tiny_tokenizer(), seed=0, epoch=0)
    second = sft(path, "level").make_rows("train", tiny_tokenizer(), seed=0, epoch=0)
    plain = sft(path).make_rows("train", tiny_tokenizer(), seed=0, epoch=0)
    assert [each["level"] for each in second.columns()] == [2, 1]
    assert list(plain.columns()) == []
    assert first.split.fingerprint == second.split.fingerprint == plain.split.fingerprint


def test_a_dialogue_without_an_answer_takes_its_columns_along(tmp_path):
    silent = {"messages": [{"role": "assistant", "content": "x", "train": False}], "n": 1}
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    records = [{"messages": said, "n": 0}, silent, {"messages": said, "n": 2}]
    rows = sft(written(tmp_path / "a.jsonl", records), "n").make_rows(
        "train", tiny_tokenizer(), seed=0, epoch=0
    )
    assert [each["n"] for each in rows.columns()] == [0, 2]


def test_sft_lists_the_columns_that_there_are(tmp_path):
    path = written(tmp_path / "a.jsonl", ASKED)
    with pytest.raises(RunError, match=r"no column 'domian', which keep_columns .* domain, level"):
        list(sft(path, "domian").dialogues("train"))

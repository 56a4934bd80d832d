"""What records may look like, where they come from, and what is said where they are wrong."""

import json
import os
import subprocess
import sys

import datasets
import pytest
import tiny
from chats import ask, chat
from kdcore_sft import Sft, dialogue_of
from kdcore_text.records import Record
from pydantic import ValidationError
from standin_hub import serving

from kdcore import RunError


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def jsonl(path, records):
    return write(path, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records))


def dialogues(path, split="train", **options):
    return [list(each.messages) for each in Sft(path=path, **options).dialogues(split)]


def asked(question, answer):
    return chat(question, answer)["messages"]


def refused(record):
    with pytest.raises(RunError) as error:
        dialogue_of(Record(record, "a.json: record 3"))
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix("a.json: record 3")


def test_each_format_is_reported_by_its_names():
    turns = chat("Hi", "Hello.", "Bye", "See you.", system="Be brief.")
    for record, messages in [
        ({"instruction": "Hi", "output": "Hello."}, asked("Hi", "Hello.")),
        ({"instruction": "Hi", "input": "you", "output": "x"}, asked("Hi\nyou", "x")),
        ({"instruction": "Hi", "input": "", "output": "x"}, asked("Hi", "x")),
        ({"instruction": "Hi", "input": None, "output": "x", "n": 1}, asked("Hi", "x")),
        ({"instruction": "", "input": "you", "output": "x"}, asked("you", "x")),
        ({"prompt": "Hi", "completion": "Hello."}, asked("Hi", "Hello.")),
        (turns, turns["messages"]),
        ({"prompt": "of another column", **turns}, turns["messages"]),
        ({"messages": [*turns["messages"], {"role": "user", "content": "!"}]}, turns["messages"]),
    ]:
        assert list(dialogue_of(Record(record, "")).messages) == messages


def test_what_is_no_format_is_reported_with_the_names_there_are():
    assert refused({"question": "a", "answer": "b", "n": None}) == (
        " has question, answer, and needs instruction and output (and input, if there is one), "
        "prompt and completion, messages, or conversations; say which is which in [data]: "
        'fields = {instruction = "question", output = "answer"}'
    )
    assert refused({}).startswith(" has nothing, and needs instruction")
    assert (
        refused({"instruction": "a", "response": "b"})
        == " has instruction, response, but lacks output; if it has another name, set "
        'fields = {output = "NAME"} in [data]'
    )
    assert refused({"prompt": "a", "completion": None}).startswith(
        " has prompt, but lacks completion; if it has another name"
    )


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"instruction": "a", "output": 5}, " has output of type int, expected text"),
        (
            {"instruction": "a", "input": ["b"], "output": "c"},
            " has input of type list, expected",
        ),
        ({"prompt": [], "completion": "c"}, " has prompt of type list, expected text"),
        ({"messages": "Hi"}, " has messages of type str, expected a list"),
        ({"messages": []}, " has no messages"),
        ({"messages": ["Hi"]}, ": message 1 has type str, expected role and content"),
        ({"messages": [{"role": "user"}]}, ": message 1 has no content"),
        ({"messages": [{"content": "Hi"}]}, ": message 1 has no role"),
        (
            {"messages": [{"role": "user", "content": 5}]},
            ": message 1 has a content of type int, expected text or parts",
        ),
        (
            {"messages": [{"role": "user", "content": ""}, {"role": "human", "content": ""}]},
            ": message 2 has the role 'human'; possible are system, developer, user, assistant, to",
        ),
        (
            {"messages": [{"role": "user", "content": "Hi"}]},
            " has no assistant turn among its messages",
        ),
    ],
)
def test_errors_in_records_are_reported(record, said):
    assert refused(record).startswith(said)


def test_records_come_from_json_and_parquet(tmp_path):
    records = [ask("一", "二", input="三"), ask("a", "b")]
    found = [asked("一\n三", "二"), asked("a", "b")]
    assert dialogues(write(tmp_path / "a.json", json.dumps(records, indent=1))) == found
    assert dialogues(jsonl(tmp_path / "a.jsonl", records)) == found
    assert dialogues(jsonl(tmp_path / "b.json", records)) == found
    datasets.Dataset.from_list(records).to_parquet(tmp_path / "c.parquet")
    assert dialogues([str(tmp_path / "c.parquet"), str(tmp_path / "a.jsonl")]) == found * 2


def test_dialogues_come_from_folders_and_what_datasets_saved(tmp_path):
    records = [chat("a", "b", system="c"), chat("d", "e", "f", "g")]
    found = [each["messages"] for each in records]
    (tmp_path / "folder").mkdir()
    jsonl(tmp_path / "folder" / "train.jsonl", records)
    jsonl(tmp_path / "folder" / "validation.jsonl", records[:1])
    assert dialogues(str(tmp_path / "folder")) == found
    assert dialogues(str(tmp_path / "folder"), "validation") == found[:1]
    datasets.Dataset.from_list(records).save_to_disk(tmp_path / "saved")
    assert dialogues(str(tmp_path / "saved")) == found


@pytest.mark.parametrize("options", [{}, {"validation_share": 0.5}])
def test_a_file_that_wraps_its_records_says_how_to_unwrap_them(tmp_path, options):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"data": [ask("a", "b"), ask("c", "d")]}))
    with pytest.raises(RunError, match=r"its data is a list of records \(2\): save that"):
        list(Sft(path=str(path), **options).dialogues("train"))


def test_a_file_of_blank_lines_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n\n \n")
    with pytest.raises(RunError, match="jsonl has no records for the 'train' split: only blank"):
        list(Sft(path=str(path), validation_share=0.5).dialogues("train"))


def test_splits_are_those_of_texts(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [ask(f"{n}", "x") for n in range(40)])
    other = jsonl(tmp_path / "b.jsonl", [ask("other", "x")])
    train = dialogues(path, validation_share=0.1)
    held = dialogues(path, "validation", validation_share=0.1)
    assert (len(train), len(held)) == (36, 4)
    assert not [each for each in held if each in train]
    assert dialogues(path, "validation", validation=other) == [asked("other", "x")]
    assert len(dialogues(path, fraction=0.5, skip=0.25)) == 20
    (fault,) = Sft(path=path).faults(None)
    assert "set validation = PATH or validation_share" in fault


def test_files_that_cannot_be_read_are_reported_with_the_record(tmp_path):
    for name, text, said in [
        (
            "a.jsonl",
            '{"prompt": "a", "completion": "b"}\n\n{"prompt": \n',
            r"record 2 \(line 3\) is not JSON: Expecting value at column 12",
        ),
        (
            "b.jsonl",
            '"a"\n',
            r"record 1 \(line 1\) has type str; a file of records is a",
        ),
        (
            "c.json",
            '[{"prompt": "a"},\n 5',
            r"c\.json is not JSON: Expecting ',' delimiter: line "
            "2",
        ),
        ("d.json", "[[]]", r"record 1 has type list; a file of records"),
        ("e.json", '{\n "rows": []}', r"e\.json: record 1 \(line 1\) has rows, and needs"),
        ("j.json", '{\n "rows": [}', r"record 1 \(line 1\) is not JSON: .* is a list of them, or"),
        ("f.json", "", r"f\.json is empty"),
        ("g.txt", "a", r"cannot read records from .*g\.txt: files of records end in \.json, \.j"),
        ("h.json", "[]", r"h\.json has no records for the 'train' split: only blank lines"),
        ("i.jsonl", '{"a": 1}\n', r"i\.jsonl: record 1 \(line 1\) has a, and needs instruction"),
    ]:
        path = write(tmp_path / name, text)
        with pytest.raises(RunError, match=said) as refused:
            dialogues(path)
        assert "\n" not in str(refused.value)


def test_a_record_of_a_table_is_reported_by_its_number(tmp_path):
    datasets.Dataset.from_list([ask("a", "b"), ask("a", None)]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(RunError, match=r"a\.parquet: record 2 has instruction, but lacks output"):
        dialogues(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rows": "chunk"}, '"chunk" would cut between a question and its answer; possible are'),
        ({"cut": "split"}, '"split" would separate an answer from its question'),
        ({"template": "chatlm"}, "'chatlm' is neither a Jinja text nor one of 'plain', 'chatml'"),
        ({"validation": "a", "validation_share": 0.1}, "exclude each other"),
    ],
)
def test_options_that_make_no_sense(options, said):
    with pytest.raises(ValidationError, match=said):
        Sft(path="a.json", **options)


def test_texts_are_whole_dialogues(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [ask("one", "two"), chat("a", "b", system="c")])
    assert list(Sft(path=path).texts("train")) == [
        "User:\none\n\nAssistant:\ntwo",
        "c\n\nUser:\na\n\nAssistant:\nb",
    ]
    own = "{% for m in messages %}{{ bos_token + m.content + eos_token }}|{% endfor %}"
    assert list(Sft(path=path, template=own).texts("train")) == ["one|two|", "c|a|b|"]


def test_the_fingerprint_is_of_the_content(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [ask("one", "two")])
    before = Sft(path=path).fingerprint()
    assert Sft(path=path).fingerprint() == before
    assert Sft(path=path, system="x").fingerprint() != before
    jsonl(tmp_path / "a.jsonl", [ask("one", "three")])
    assert Sft(path=path).fingerprint() != before


def test_rows_are_rebuilt_where_anything_differs(tmp_path):
    tokenizer = tiny.byte_tokenizer()
    path = jsonl(
        tmp_path / "a.jsonl",
        [ask("one or the other or none at all", "two"), chat("a", "b", "c", "d")],
    )

    def rows(**options):
        data = Sft(path=path, **{"template": "plain", "block": 128} | options)
        made = data.make_rows("train", tokenizer, seed=0, epoch=0)
        return [(row["input_ids"].tolist(), row["labels"].tolist()) for row in made]

    different = [{}, {"system": "x"}, {"train_on": "last"}, {"eos": False}, {"block": 40}]
    different += [
        {"block": 40, "cut": "left"},
        {"template": "{% for m in messages %}{{ m.content }}{% endfor %}"},
    ]
    found = [rows(**options) for options in different]
    assert all(one != other for n, one in enumerate(found) for other in found[:n])
    assert [rows(**options) for options in different] == found
    jsonl(tmp_path / "a.jsonl", [ask("one", "three")])
    assert rows() != found[0]


ASK = """
from kdcore_sft import Sft
data = Sft(path="owner/instructions", validation_share=0.5)
print([[m["content"] for m in each.messages] for each in data.dialogues("train")])
print([[m["content"] for m in each.messages] for each in data.dialogues("validation")])
"""


@pytest.mark.slow
def test_dialogues_come_from_the_hub(tmp_path):
    root, home = tmp_path / "hub", tmp_path / "home"
    folder = root / "datasets" / "owner" / "instructions"
    folder.mkdir(parents=True)
    records = [ask("one", "1", input="", text="x"), ask("two", "2", input="zwei", text="x")]
    datasets.Dataset.from_list(records).to_parquet(folder / "train-00000-of-00001.parquet")
    with serving(root) as (url, _):
        hub = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        hub |= {"HF_HUB_DISABLE_XET": "1", "HF_DATASETS_CACHE": str(home / "datasets")}
        done = subprocess.run(
            [sys.executable, "-c", ASK], env=os.environ | hub, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    found = sorted(done.stdout.split("\n"))
    assert found == ["", "[['one', '1']]", "[['two\\nzwei', '2']]"]

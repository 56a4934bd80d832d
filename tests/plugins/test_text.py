"""Text from files, folders and data sets, and what is said where there is none."""

import json

import pytest
from kdcore_text import Text
from pydantic import ValidationError

from kdcore import RunError


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return str(path)


def train(path, **options):
    return list(Text(path=path, **options).texts("train"))


def validation(path, **options):
    return list(Text(path=path, **options).texts("validation"))


def rows(path, texts, column="text"):
    return write(path, "".join(json.dumps({column: text, "n": 1}) + "\n" for text in texts))


@pytest.fixture
def numbers(tmp_path):
    return write(tmp_path / "numbers.txt", "\n\n".join(f"document {n}" for n in range(200)))


def test_blank_lines_lie_between_documents(tmp_path):
    path = write(tmp_path / "a.txt", "\n\n one\ntwo\n \t\n\nthree\r\nfour\n")
    assert train(path) == [" one\ntwo", "three\nfour"]


def test_separator_lines_lie_between_documents(tmp_path):
    path = write(
        tmp_path / "a.txt", "one\n\ntwo\n<|endoftext|>\n\n<|endoftext|>\nthree <|endoftext|>"
    )
    assert train(path, separator="<|endoftext|>") == ["one\n\ntwo", "three <|endoftext|>"]


def test_each_line_may_be_a_document(tmp_path):
    path = write(tmp_path / "a.txt", "one\n\n two\n   \nthree")
    assert train(path, separator="\n") == ["one", " two", "three"]


def test_a_forgotten_separator_is_reported(tmp_path):
    path = write(tmp_path / "a.txt", "one\n<|endoftext|>\ntwo")
    with pytest.raises(RunError, match=r'set separator = "<\|endoftext\|>" in \[data\]'):
        train(path)


def test_a_byte_order_mark_is_no_text(tmp_path):
    assert train(write(tmp_path / "a.txt", "one", "utf-8-sig")) == ["one"]


@pytest.mark.parametrize(("mark", "at"), [(b"", 8), (b"\xef\xbb\xbf", 11)])
@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", b"one\n\ntwo\xff\n"), ("a.jsonl", b"{}\n\n{}  \xff\n")]
)
def test_what_is_not_utf8_is_named_with_its_byte(tmp_path, name, content, mark, at):
    (tmp_path / name).write_bytes(mark + content)
    with pytest.raises(RunError, match=rf"{name} is not UTF-8 at byte {at}; save it as UTF-8"):
        train(str(tmp_path / name))


def test_rows_of_json_and_parquet(tmp_path):
    import datasets

    path = rows(tmp_path / "a.jsonl", ["one", "", "two"], column="story")
    assert train(path, column="story") == ["one", "two"]
    listed = write(tmp_path / "b.json", json.dumps([{"story": "one"}, {"story": None}]))
    assert train(listed, column="story") == ["one"]
    datasets.Dataset.from_dict({"story": ["three"]}).to_parquet(tmp_path / "c.parquet")
    assert train([path, str(tmp_path / "c.parquet")], column="story") == ["one", "two", "three"]


def test_a_missing_column_names_those_there_are(tmp_path):
    path = rows(tmp_path / "a.jsonl", ["one"], column="story")
    with pytest.raises(RunError, match=r"has no column 'text'; set column in .*: it has story, n"):
        train(path)


def test_a_column_must_hold_text(tmp_path):
    with pytest.raises(RunError, match="the column 'n' holds int; it must hold text"):
        train(rows(tmp_path / "a.jsonl", ["one"]), column="n")


@pytest.mark.parametrize("folder", [False, True])
def test_records_that_are_null_are_reported(tmp_path, folder):
    (tmp_path / "a.jsonl").write_text("\nnull\nnull\n")  # Arrow ends the process over these
    path = tmp_path if folder else tmp_path / "a.jsonl"
    with pytest.raises(RunError, match="null" if folder else "NoneType"):
        list(Text(path=str(path), validation_share=0.5).texts("train"))


def test_an_empty_file_of_rows_is_reported(tmp_path):
    with pytest.raises(RunError, match=r"a\.jsonl is empty"):
        train(write(tmp_path / "a.jsonl", ""))


def test_broken_json_is_reported_in_one_line(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "one"}\n{"text": \n')
    with pytest.raises(RunError, match=r"a\.jsonl: record 2 \(line 2\) is not JSON") as refused:
        train(path)
    assert "\n" not in str(refused.value)


def test_half_a_character_is_reported_and_two_halves_are_one(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "\\ud83d\\ude00"}\n{"text": "b\\uD800"}\n')
    with pytest.raises(RunError, match=r"record 2 \(line 2\) has an unpaired surrogate, '\\ud800'"):
        train(path)
    assert train(write(tmp_path / "a.jsonl", '{"text": "\\ud83d\\ude00"}\n')) == ["\U0001f600"]


def test_a_folder_of_text_files_is_all_of_them(tmp_path):
    write(tmp_path / "b.txt", "two")
    write(tmp_path / "a.txt", "one")
    assert train(str(tmp_path)) == ["one", "two"]


def test_names_of_text_files_may_tell_their_split(tmp_path):
    for name in ("en-train", "en-valid", "en-test"):
        write(tmp_path / f"{name}.txt", name)
    assert train(str(tmp_path)) == ["en-train"]
    assert validation(str(tmp_path)) == ["en-valid"]
    assert validation(str(tmp_path), validation="test") == ["en-test"]
    (tmp_path / "en-train.txt").unlink()
    with pytest.raises(RunError, match=r"'train': it has test \(en-test\.txt\), validation \(en-"):
        train(str(tmp_path))


def test_a_folder_may_be_a_data_set(tmp_path):
    rows(tmp_path / "train.jsonl", ["one"])
    rows(tmp_path / "validation.jsonl", ["two"])
    assert train(str(tmp_path)) == ["one"]
    assert validation(str(tmp_path)) == ["two"]
    assert train(str(tmp_path), split="validation") == ["two"]
    with pytest.raises(
        RunError, match=r"the split 'no': it has train \(train\.jsonl\), validation"
    ):
        train(str(tmp_path), split="no")
    assert train(str(tmp_path), split="train[:1]") == ["one"]
    with pytest.raises(RunError, match=r'Unknown split "no".*; set split, validation'):
        train(str(tmp_path), split="no[:1]")
    with pytest.raises(RunError, match=r"BuilderConfig 'no' not found.*; set config in \[data\]"):
        train(str(tmp_path), config="no")


def test_a_folder_may_be_saved_by_datasets(tmp_path):
    import datasets

    saved = datasets.Dataset.from_dict({"text": ["one"]})
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(tmp_path / "two")
    assert train(str(tmp_path / "one")) == train(str(tmp_path / "two")) == ["one"]
    with pytest.raises(RunError, match="has no split 'validation'; it has train, test"):
        validation(str(tmp_path / "two"))


def test_validation_may_be_another_path(tmp_path, numbers):
    write(tmp_path / "other" / "valid.txt", "one")
    rows(tmp_path / "rows" / "part.jsonl", ["two"])
    assert validation(numbers, validation=str(tmp_path / "other" / "valid.txt")) == ["one"]
    assert validation(numbers, validation=str(tmp_path / "other")) == ["one"]
    assert validation(numbers, validation=str(tmp_path / "rows")) == ["two"]


def test_validation_must_come_from_somewhere(numbers):
    with pytest.raises(RunError, match="set validation = PATH or validation_share") as refused:
        validation(numbers)
    assert list(Text(path=numbers).faults(None)) == [str(refused.value)]
    for given in ({"path": "owner/name"}, {"path": numbers, "validation_share": 0.1}):
        assert not list(Text(**given).faults(None))
    with pytest.raises(RunError, match=r"there is no file or folder 'absent\.txt'"):
        validation(numbers, validation="absent.txt")
    with pytest.raises(ValidationError, match="exclude each other"):
        Text(path=numbers, validation="a", validation_share=0.5)


def test_a_share_is_held_out_for_validation(numbers):
    trained, held = (
        train(numbers, validation_share=0.05),
        validation(numbers, validation_share=0.05),
    )
    assert len(held) == 10
    assert sorted(trained + held) == sorted(train(numbers))
    assert held == validation(numbers, validation_share=0.05)
    assert held != train(numbers)[:10]
    assert held == validation(numbers, validation_share=0.05, fraction=0.1)
    assert len(validation(numbers, validation_share=0.0001)) == 1


def test_a_share_of_the_documents_is_trained_on(numbers):
    everything = train(numbers)
    assert train(numbers, fraction=0.1) == everything[:20]
    assert train(numbers, fraction=0.5, skip=0.5) == everything[100:]
    assert train(numbers, skip=0.25) == everything[50:]


def test_texts_can_be_read_again(numbers):
    data = Text(path=numbers)
    assert list(data.texts("train")) == list(data.texts("train"))


def test_the_fingerprint_is_of_the_content(tmp_path):
    path = write(tmp_path / "a.txt", "one")
    before = Text(path=path).fingerprint()
    assert Text(path=path).fingerprint() == before
    write(tmp_path / "a.txt", "two")
    assert Text(path=path).fingerprint() != before
    assert Text(path="owner/name").fingerprint() == Text(path="owner/name").fingerprint()


@pytest.mark.parametrize("path", ["./absent", "absent.txt", "~/absent", "a/b/c", "absent.jsonl"])
def test_a_file_that_is_absent_is_reported(path):
    with pytest.raises(RunError, match=f"there is no file or folder '{path}'"):
        train(path)


def test_a_hub_out_of_reach_is_reported_in_one_sentence(tmp_path):
    with pytest.raises(RunError) as refused:
        train("owner/absent")
    said = str(refused.value)
    assert said.startswith("cannot load the data set 'owner/absent': there is no such file")
    assert "the hub cannot be reached" in said
    assert "\n" not in said


@pytest.mark.slow
def test_real_text_is_split_into_its_documents(shared_data):
    stories = train(str(shared_data / "tinystories_train.txt"), separator="<|endoftext|>")
    assert len(stories) == 2316
    assert not any("<|endoftext|>" in story for story in stories)
    paragraphs = train(str(shared_data / "wikitext2_valid.txt"), separator="\n")
    assert len(paragraphs) == 2461
    assert paragraphs[0] == " = Homarus gammarus = "

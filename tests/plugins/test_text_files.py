"""Files of every format: read as their author meant, or refused in a sentence with the place."""

import bz2
import csv
import gzip
import io
import json
import lzma

import datasets
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kdcore_sft import Sft
from kdcore_text import Text
from kdcore_text.csv_files import CsvFile
from kdcore_text.json_files import JsonFile

from kdcore import RunError

CELLS = 'id,text\n1,"She said ""hi"", and\n\nleft"\n2,NA\n3,null\n'
TEXTS = ['She said "hi", and\n\nleft', "NA", "null"]
LINES = '{"text": "one"}\n{"text": "two"}\n'


def zstd(content):
    return pyarrow.compress(content, codec="zstd", asbytes=True)


@pytest.fixture
def texts(tmp_path):
    """The documents of a file with this name and content."""

    def texts(name, content, **options):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return list(Text(path=str(path), **options).texts("train"))

    return texts


@pytest.fixture
def refused(texts):
    """What is said of such a file, behind its folder."""

    def refused(name, content, **options):
        with pytest.raises(RunError) as error:
            texts(name, content, **options)
        said = str(error.value)
        assert name in said
        assert "\n" not in said
        return said[said.index(name) :]

    return refused


# ---- CSV


@pytest.mark.parametrize("name", ["a.csv", "a.CSV", "a.tsv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_csv_is_records_and_never_raw_text(texts, name, encoding):
    assert texts(name, CELLS.encode(encoding)) == TEXTS


@pytest.mark.parametrize("delimiter", ",;\t|")
def test_the_delimiter_is_reported_by_the_first_line(texts, delimiter):
    content = f"n{delimiter}text\n1{delimiter}one\n"
    assert texts("a.csv", content) == texts("a.tsv", content) == ["one"]
    odd = f'"a (b, c; d)"{delimiter}text\n1{delimiter}one\n'
    assert texts("a.csv", odd) == ["one"]


def test_what_excel_writes_is_read(texts):
    assert texts("a.csv", "sep=;\r\nid;text\r\n1;a,b\r\n") == ["a,b"]
    assert texts("a.csv", "id,text\r1,one\r2,two\r") == ["one", "two"]
    assert texts("a.csv", 'id,text\r\n1,"a\r\nb"\r\n') == ["a\r\nb"]


def test_spaces_behind_commas_are_no_part_of_cells(texts):
    assert texts("a.csv", 'id, text\n1, "one, or two"\n') == ["one, or two"]
    assert texts("a.csv", "id,text\n1, one\n") == [" one"]


def test_a_cell_may_be_long(texts):
    assert texts("a.csv", f"id,text\n1,{'x' * 300_000}\n") == ["x" * 300_000]
    assert texts("a.csv", "text\none\n\ntwo\n") == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "id,text\n1,a\n2,a, b\n",
            "record 2 (line 3) has 3 cells, and the first line names 2: put",
        ),
        ("id,text\n\n1\n", "record 1 (line 3) has 1 of the 2 cells that the first line names"),
        ('id,text\n1,"a\nb"\n2,"c\n3,d\n', "line 4: a quote that is opened there is never closed"),
        ('id,text\n1,"a" b\n', "line 2: ',' expected after '\"'; a quote inside a quoted cell is"),
        ("sep=;\nid;text\n1\n", "record 1 (line 3) has 1 of the 2 cells"),
        ("text,text\na,b\n", "has two columns 'text' in its first line"),
        ("\n\n", "has nothing but blank lines"),
        ("", "is empty"),
        ("id,text\n1,é\n".encode("latin-1"), "is not UTF-8 at byte 10; save it as UTF-8"),
        ("id,story\n1,a\n", "has no column 'text'; set column in [data]: it has id, story"),
        (f"1,{'word ' * 9}\n2,b\n", f"it has 1, {('word ' * 9)[:40]}..."),
    ],
)
def test_csv_errors_are_reported_with_their_line(refused, content, said):
    assert said in refused("a.csv", content)


@pytest.mark.slow
@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1),
    st.sampled_from(",;\t|"),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    st.sampled_from([("\n", csv.QUOTE_ALL), ("\r\n", csv.QUOTE_MINIMAL)]),  # "\n" quotes no "\r"
)
def test_what_a_writer_of_csv_wrote_comes_back(tmp_path_factory, texts, delimiter, encoding, how):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    written = io.StringIO(newline="")
    writer = csv.writer(written, delimiter=delimiter, lineterminator=how[0], quoting=how[1])
    writer.writerows([["n", "text"], *enumerate(texts)])
    path.write_bytes(written.getvalue().encode(encoding))
    assert [record.values["text"] for record in CsvFile(path, "text").read()] == texts


def test_csv_holds_instructions_too(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,completion\nHi,"a,\nb"\n')
    (dialogue,) = Sft(path=str(tmp_path / "a.csv")).dialogues("train")
    assert [each["content"] for each in dialogue.messages] == ["Hi", "a,\nb"]


# ---- JSON


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson", "a.JSONL", "a.NdJson"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_lines_under_any_ending(texts, name, encoding):
    assert texts(name, LINES.encode(encoding)) == ["one", "two"]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_file_may_be_one_record_or_several_over_many_lines(texts, name):
    record = json.dumps({"text": "one\n", "n": [1, 2]}, indent=2)
    assert texts(name, record) == ["one\n"]
    assert texts(name, f"\n{record}\n\n{record}{record}\n") == ["one\n"] * 3


@pytest.mark.slow
@given(st.lists(st.dictionaries(st.text(), st.text() | st.lists(st.integers()), min_size=1)))
def test_records_are_read_whatever_their_layout(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("json") / "a.json"
    laid_out = [
        json.dumps(records, indent=1),
        "\n".join(map(json.dumps, records)) + "\n",
        "\n".join(json.dumps(each, indent=2) for each in records) + "\n",
    ]
    for text in laid_out:
        path.write_text(text)
        assert [dict(record.values) for record in JsonFile(path).read()] == records


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"text": \n{"text": "a"}\n', "record 1 (line 1) is not JSON: Expecting value"),
        (
            "a.json",
            '{"text": "a",\n "n": }',
            "record 1 (line 1) is not JSON: Expecting value: line 2",
        ),
        ("a.json", '{\n"text": "a"}\n\n{\n"n"', "record 2 (line 4) is not JSON: Expecting ':'"),
        ("a.json", '{\n"text": "\\ud800"}', "record 1 (line 1) has an unpaired surrogate"),
        ("a.json", '[{"text": "a"},', "a.json is not JSON: Expecting value at column 16"),
        ("a.json", '["a", "b"]', "record 1 has type str; a file of records is a list of them"),
        (
            "a.json",
            '{"rows": [{"text": "a"}]}',
            "no column 'text'; its rows is a list of records (1): save that list alone as a JSON "
            "file, or each of its records on a line",
        ),
        (
            "a.json",
            '{"rows": ["a"]}',
            "no column 'text'; set column in [data]: it has rows",
        ),
        ("a.jsonl", "{}\n", "no column 'text'; set column in [data]: it has none"),
        ("a.jsonl", '{"text": ["a"]}\n', "the column 'text' holds list; it must hold text"),
        ("a.jsonl", '{"text": [{"role": "user"}]}\n', 'text; use = "sft" reads dialogues'),
    ],
)
def test_json_errors_are_reported_with_their_record(refused, name, content, said):
    assert said in refused(name, content)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("a.txt", {}, "a.txt has no text for the 'train' split: only blank lines or values"),
        ("a.csv", {}, "a.csv has no text for the 'train' split: only blank lines or values"),
        ("a.jsonl", {"validation_share": 0.5}, "a.jsonl has no text for the 'train' split: only"),
        ("a.txt", {"fraction": 0.1}, "a.txt has no text for the 'train' split with fraction = 0.1"),
    ],
)
def test_files_of_blank_lines_are_named(refused, name, options, said):
    content = "id,text\n" if name == "a.csv" else "\n\n \n\n"
    assert refused(name, content, **options).startswith(said)


def test_a_file_that_wraps_its_records_says_how_to_unwrap_them(refused):
    wrapped = json.dumps({"data": [{"text": "a"}, {"text": "b"}]})
    said = refused("a.json", wrapped, validation_share=0.5)
    assert "its data is a list of records (2): save that list alone" in said


def test_many_columns_are_not_all_named(refused):
    said = refused("a.jsonl", json.dumps({f"c{n}": "" for n in range(50)}))
    assert said.endswith("c18, c19 and 30 more")


# ---- compressed files


PACKED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.mark.parametrize("ending", PACKED)
def test_compressed_files_are_unpacked(texts, ending):
    pack = PACKED[ending]
    assert texts(f"a.txt{ending}", pack(b"one\n\ntwo")) == ["one", "two"]
    assert texts(f"a{ending}", pack(b"one\n\ntwo")) == ["one", "two"]
    assert texts(f"a.jsonl{ending}", pack(LINES.encode())) == ["one", "two"]
    assert texts(f"a.Csv{ending.upper()}", pack(CELLS.encode("utf-16"))) == TEXTS
    assert texts(f"a.txt{ending}", pack(b"one\n\n") + pack(b"two")) == ["one", "two"]


@pytest.mark.parametrize("ending", PACKED)
def test_damaged_compressed_files_are_reported(refused, ending):
    whole = PACKED[ending](b"".join(b'{"text": "%d"}\n' % n**5 for n in range(5000)))
    refused(f"a.jsonl{ending}", whole[:-9])
    refused(f"a.txt{ending}", whole[:-9])
    refused(f"a.txt{ending}", b"no such thing at all")
    refused(f"a.jsonl{ending}", b"no such thing at all")
    if ending != ".zst":  # its checksum is optional, and not there
        refused(f"a.jsonl{ending}", whole[:200] + bytes(200) + whole[400:])


# ---- plain text


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_marks_of_other_encodings_are_understood(texts, encoding):
    assert texts("a.txt", "\none é\n\n\u2028two\n".encode(encoding)) == ["one é", "\u2028two"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "", "is empty"),
        (
            "a.txt",
            "one and two\n".encode("utf-16-le"),
            "is not UTF-8 text: many of its bytes are zero",
        ),
        ("a.txt", b"\xff\xfea\0b", "begins as UTF-16 and is none"),
        ("a.txt", gzip.compress(b"one", mtime=0), "is compressed: let its name end in .gz"),
        ("a.csv", b"PK\x03\x04 a sheet", "is a zip archive or an office document: unpack it, or"),
        ("a.md", b"PAR1 and more", "is a parquet file: let its name end in .parquet"),
        ("a.txt", "version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "`git lfs pull`"),
        ("a.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "`git lfs pull`"),
        ("a.parquet", "version https://git-lfs.github.com/spec/v1\noid", "`git lfs pull`"),
    ],
)
def test_what_is_no_text_is_reported(refused, name, content, said):
    assert said in refused(name, content)


@pytest.mark.parametrize(
    ("content", "format"),
    [
        (LINES, "json"),
        ("\ufeff" + LINES, "json"),
        (json.dumps([{"text": "one"}, {"text": "two"}], indent=1), "json"),
        (json.dumps({"text": "one"}, indent=1), "json"),
        (CELLS, "csv"),
        (CELLS.replace("\n", "\r\n", 1), "csv"),
        ("id\ttext\n1\tone\n", "csv"),
    ],
)
def test_records_in_a_text_file_are_noticed(texts, refused, content, format):
    said = refused("a.txt", content)
    assert f'set format = "{format}" in [data]; with format = "text" it is trained on as' in said
    expected = texts("a.jsonl" if format == "json" else "a.csv", content)
    assert texts("a.txt", content, format=format) == expected
    as_text = texts("a.txt", content, format="text")
    assert as_text[0].split() == content.strip("\ufeff").split("\n\n")[0].split()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("content", [LINES, CELLS])
def test_records_in_a_text_file_are_noticed_behind_a_mark(refused, encoding, content):
    assert "in [data]; with format" in refused("a.txt", content.encode(encoding))


@pytest.mark.parametrize(
    "content", ["{braces} are text", "The text, as such,\nis text.", "[1] text", "id,text", "text"]
)
def test_text_is_not_taken_for_records(texts, content):
    assert texts("a.txt", content) == [content]


def test_other_endings_are_text_unless_a_format_is_set(texts):
    assert texts("a.train", "one\n\ntwo") == ["one", "two"]
    assert texts("a.data", LINES, format="json") == ["one", "two"]
    assert texts("a.data", CELLS, format="csv") == TEXTS


# ---- tables


@pytest.fixture
def table():
    return datasets.Dataset.from_dict({"text": ["one", "two"], "n": [1, 2]})


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_and_both_kinds_of_arrow(tmp_path, table, streaming):
    table.to_parquet(tmp_path / "a.PARQUET")
    table.to_parquet(tmp_path / "b[1].parquet")
    table.save_to_disk(tmp_path / "saved")
    with pyarrow.ipc.new_file(tmp_path / "b.arrow", table.data.table.schema) as writer:
        writer.write_table(table.data.table)
    (stream,) = (tmp_path / "saved").glob("*.arrow")
    for path in (tmp_path / "a.PARQUET", tmp_path / "b[1].parquet", tmp_path / "b.arrow", stream):
        data = Text(path=str(path), streaming=streaming)
        assert list(data.texts("train")) == ["one", "two"]


def test_damaged_tables_are_reported_with_their_file(tmp_path, table, refused):
    for name in ("a", "b", "c"):
        table.to_parquet(tmp_path / f"{name}.parquet")
    whole = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[:-9])
    with pytest.raises(RunError, match=r"cannot load [^ ]*b\.parquet: Parquet magic bytes not"):
        list(Text(path=str(tmp_path)).texts("train"))
    refused("a.arrow", b"no arrow at all")
    assert "unpack it, as parquet has its own compression" in refused("a.parquet.gz", b"x")
    assert "is empty" in refused("a.parquet", b"")
    table.save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    arrow.unlink()
    with pytest.raises(RunError, match=r"cannot load the data set in .*saved: .*No such file"):
        list(Text(path=str(tmp_path / "saved")).texts("train"))

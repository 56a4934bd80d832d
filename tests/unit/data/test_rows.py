"""Texts become rows; rows that data made by itself are checked."""

import logging

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from kdcore import Data, PluginError, RunError, UsageError, component
from kdcore.data.given import as_rows
from kdcore.data.rows import pack_texts


@component
class Given(Data):
    name = "given"
    documents: list[str]

    def texts(self, split):
        return iter(self.documents)


def rows_of(tokenizer, documents, **options):
    return pack_texts(Given(documents=documents, **options), "train", tokenizer)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    return tmp_path


documents = st.lists(st.text("abc \n", max_size=30), min_size=1, max_size=12).filter(any)


# The tokenizer is only read.
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents, st.sampled_from(["pack", "chunk", "one"]), st.booleans(), st.integers(2, 9))
def test_every_row_says_where_its_tokens_come_from(byte_tokenizer, documents, layout, eos, block):
    assume(any(len(text) + eos >= 2 for text in documents))
    rows = rows_of(byte_tokenizer, documents, rows=layout, eos=eos, block=block)
    end = [byte_tokenizer.eos_token_id] if eos else []
    ids = [byte_tokenizer(text)["input_ids"] + end for text in documents if text]
    assert rows.split.lengths.tolist() == [len(each) for each in ids]
    assert rows.lengths.tolist() == [len(row["input_ids"]) for row in rows]
    for row in rows:
        places = zip(row["document"], row["offset"], strict=True)
        assert row["input_ids"].tolist() == [ids[d][offset] for d, offset in places]
        assert {array.dtype for array in row.values()} == {np.dtype("int32")}
    backwards = rows.subset(range(len(rows))[::-1]).some(range(len(rows)))
    for alone, together in zip(rows, reversed(backwards), strict=True):
        assert alone.keys() == together.keys()
        assert all((alone[key] == together[key]).all() for key in alone)


def test_packed_pieces_are_isolated_by_their_positions(byte_tokenizer):
    rows = rows_of(byte_tokenizer, ["abcdef", "xy"], block=5)
    found = [(row["document"].tolist(), row["position"].tolist()) for row in rows]
    assert sorted(found) == [([0, 0, 0, 0, 0], [0, 1, 2, 3, 4]), ([0, 0, 1, 1, 1], [0, 1, 0, 1, 2])]
    assert rows.cut == 1


def test_chunks_continue_across_documents(byte_tokenizer):
    rows = rows_of(byte_tokenizer, ["abc", "xyz"], rows="chunk", block=6)
    assert rows[0]["position"].tolist() == [0, 1, 2, 3, 4, 5]
    assert rows[0]["offset"].tolist() == [0, 1, 2, 3, 0, 1]
    assert rows[1]["document"].tolist() == [1, 1]


def test_a_cut_document_continues_where_it_was_cut(byte_tokenizer):
    rows = rows_of(byte_tokenizer, ["abcdefgh"], rows="one", cut="left", block=4)
    assert byte_tokenizer.decode(rows[0]["input_ids"]) == "fgh<|endoftext|>"
    assert rows[0]["offset"].tolist() == [5, 6, 7, 8]
    assert rows[0]["position"].tolist() == [0, 1, 2, 3]


def test_rows_are_a_sequence(byte_tokenizer):
    rows = rows_of(byte_tokenizer, ["abc", "de", "f"], rows="one")
    assert rows[-1]["document"].tolist() == [2, 2]
    assert [row["document"][0] for row in rows[1:]] == [1, 2]
    some = rows.subset([2, 0])
    assert [row["document"][0] for row in some] == [2, 0]
    assert some.lengths.tolist() == [2, 4]
    assert some.split is rows.split
    with pytest.raises(IndexError):
        rows[3]


def test_empty_documents_are_skipped_and_reported(byte_tokenizer, caplog):
    caplog.set_level(logging.INFO, "kdcore")
    rows = rows_of(byte_tokenizer, ["", "ab", "", "abcdef"], block=4)
    assert rows.dropped == 2
    assert rows.split.lengths.tolist() == [3, 7]
    said = "train: 2 documents, 10 tokens in 3 rows of at most 4, 83.3% full"
    assert caplog.messages == [
        f"{said}; 1 longer ones were cut into pieces; 2 empty ones were left out"
    ]


def test_no_bos_is_added_where_it_is_off(byte_tokenizer):
    from tokenizers.processors import TemplateProcessing

    marked = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    byte_tokenizer.backend_tokenizer.post_processor = marked
    assert byte_tokenizer("a")["input_ids"][0] == 0
    rows = rows_of(byte_tokenizer, ["abc"], rows="one", eos=False, bos=False)
    assert byte_tokenizer.decode(rows[0]["input_ids"]) == "abc"


def test_the_second_start_does_not_tokenise(byte_tokenizer, cache, monkeypatch):
    first = rows_of(byte_tokenizer, ["abc", "de"])
    monkeypatch.setattr(type(byte_tokenizer), "__call__", None)
    second = rows_of(byte_tokenizer, ["abc", "de"], block=7)
    assert first.split.fingerprint == second.split.fingerprint
    assert first[0]["input_ids"].tolist() == second[0]["input_ids"].tolist()


@pytest.mark.parametrize("other", [{"documents": ["abc", "d"]}, {"eos": False}])
def test_a_cache_is_never_stale(byte_tokenizer, cache, other):
    options = {"documents": ["abc", "de"], "eos": True}
    rows = [rows_of(byte_tokenizer, **given) for given in (options, options | other)]
    assert rows[0].split.fingerprint != rows[1].split.fingerprint
    assert rows[0].split.lengths.tolist() != rows[1].split.lengths.tolist()


def test_where_documents_end_is_part_of_the_fingerprint(byte_tokenizer):
    rows = [rows_of(byte_tokenizer, texts, eos=False) for texts in (["ab", "c"], ["a", "bc"])]
    assert rows[0].split.fingerprint != rows[1].split.fingerprint


def test_texts_that_change_are_refused(byte_tokenizer):
    @component
    class Moody(Data):
        name = "moody"
        asked: list[str]

        def texts(self, split):
            self.asked.append("again")
            yield " ".join(self.asked)

    with pytest.raises(PluginError, match="'moody' gave different texts"):
        pack_texts(Moody(asked=[]), "train", byte_tokenizer)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (b"bytes", "bytes, expected str"),
        ("two\ud800", r"an unpaired surrogate, .*, behind 'two'"),
    ],
)
def test_texts_that_are_no_texts_are_refused(byte_tokenizer, given, said):
    @component
    class Wrong(Data):
        name = "wrong"

        def texts(self, split):
            return [given]

    with pytest.raises(PluginError, match=r"'wrong': texts\('train'\) gave " + said):
        pack_texts(Wrong(), "train", byte_tokenizer)


def test_no_text_is_reported_with_what_was_read(byte_tokenizer):
    with pytest.raises(RunError, match=r"given\(block=9, documents=\['', ''\]\) has no text in"):
        rows_of(byte_tokenizer, ["", ""], block=9)
    with pytest.raises(RunError, match="too short to train on"):
        rows_of(byte_tokenizer, ["a"], rows="chunk", eos=False)
    data = Given(documents=["abc"])
    data.block = 1  # as data may have it that declares the option anew, without its bound
    with pytest.raises(UsageError, match="block = 1"):
        pack_texts(data, "train", byte_tokenizer)


def test_an_eos_must_exist(byte_tokenizer):
    byte_tokenizer.eos_token = None
    with pytest.raises(RunError, match="set eos = false"):
        rows_of(byte_tokenizer, ["abc"])


def test_given_rows_are_completed():
    rows = as_rows([{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8]}], "train")
    assert {key: array.tolist() for key, array in rows[0].items()} == {
        "input_ids": [5, 6, 7],
        "labels": [-100, 6, 7],
        "position": [0, 1, 2],
        "document": [0, 0, 0],
        "offset": [0, 1, 2],
    }
    assert "labels" not in rows[1]
    assert rows.lengths.tolist() == rows.split.lengths.tolist() == [3, 1]
    assert as_rows(rows, "train") is rows


def test_given_rows_may_be_a_dataset_or_a_stream():
    given = [{"input_ids": [1, 2]}, {"input_ids": [3, 4]}, {"input_ids": [5]}]
    stored = as_rows(datasets.Dataset.from_list(given), "train")
    streamed = as_rows(iter(given), "train")
    assert (
        stored.split.fingerprint
        == streamed.split.fingerprint
        == as_rows(given, "train").split.fingerprint
    )
    assert len(as_rows(iter(given), "train", at_most=2)) == 2


def test_given_documents_have_lengths():
    row = {"input_ids": [1, 2, 3, 4], "document": [2, 2, 0, 0], "offset": [3, 4, 0, 1]}
    assert as_rows([row], "train").split.lengths.tolist() == [2, 0, 5]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ([1, 2], "is a list, expected a mapping"),
        ({}, "has no 'input_ids'"),
        ({"input_ids": [1], "attention_mask": [1]}, "has the key 'attention_mask'; possible are"),
        ({"input_ids": []}, "shape [0], expected at least one id"),
        ({"input_ids": [[1]]}, "shape [1, 1]"),
        ({"input_ids": [1.0]}, "type float64, expected whole numbers"),
        ({"input_ids": [1, -1]}, "has -1 in 'input_ids'; the least possible is 0"),
        (
            {"input_ids": [1], "labels": [-7000]},
            "has -7000 in 'labels'; the least possible is -100",
        ),
        ({"input_ids": [1, 2], "labels": [1]}, "has 1 of 'labels' for 2 of 'input_ids'"),
        ({"input_ids": [1], "document": [0]}, "needs both or neither"),
    ],
)
def test_invalid_rows_are_refused(row, fault):
    with pytest.raises(PluginError) as refused:
        as_rows([{"input_ids": [1]}, row], "train", given_by="data 'mine'")
    assert str(refused.value).startswith("data 'mine': row 1 of 'train' ")
    assert fault in str(refused.value)


def test_no_given_rows_are_refused():
    with pytest.raises(RunError, match="data 'mine' has no rows in its 'train' split"):
        as_rows([], "train", given_by="data 'mine'")


@component
class Fresh(Given):
    name = "fresh"
    fresh_each_epoch = True
    asked = 0

    def texts(self, split):
        self.asked += 1
        return iter(self.documents)


def test_fresh_chunks_need_no_second_look_at_the_texts(byte_tokenizer, cache, caplog):
    caplog.set_level(logging.INFO, "kdcore")
    data = Fresh(documents=["abcdefghij"], rows="chunk", block=4, eos=False)
    first = pack_texts(data, "train", byte_tokenizer)
    asked, said = data.asked, len(caplog.records)
    second = pack_texts(data, "train", byte_tokenizer, start=3)
    assert [row["input_ids"].size for row in first] == [4, 4, 2]
    assert [row["input_ids"].size for row in second] == [3, 4, 3]
    assert data.asked == asked and len(caplog.records) == said
    assert first.split.fingerprint == second.split.fingerprint


@pytest.mark.parametrize("layout", ["pack", "chunk", "one"])
def test_ids_of_documents_however_rows_lie(byte_tokenizer, cache, layout):
    rows = rows_of(byte_tokenizer, ["abc", "", "de fgh", "i"], rows=layout, block=4)
    flat = [
        token
        for text in ("abc", "de fgh", "i")
        for token in [*byte_tokenizer(text)["input_ids"], byte_tokenizer.eos_token_id]
    ]
    everything = np.arange(len(flat))
    assert rows.ids(everything).tolist() == rows.subset([0]).ids(everything).tolist() == flat
    made = as_rows([{"input_ids": [1, 2, 3]}], "train")
    with pytest.raises(RunError, match=r"the train data provides rows, but .*whole documents"):
        made.ids(everything)

"""Columns go with their documents: through the token store, packing and streams."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdcore import Data, PluginError, component
from kdcore.data.rows import pack_documents, pack_texts
from kdcore.data.streaming import stream_texts
from kdcore.data.tokenized import tokenise
from kdcore.testing.fakes import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


@component
class Labelled(Data):
    """Documents that are given."""

    name = "labelled"

    def documents(self, split):
        return iter(self.given)


def data(given, **options):
    made = Labelled(**({"block": 8} | options))
    made.given = given
    return made


def document(text, /, **columns):
    return {"text": text, "columns": columns}


def columns_by_text(rows):
    """What each document says, and the columns of each of its pieces."""
    found = {}
    for row in rows:
        known = row.get("columns")
        for n, number in enumerate(dict.fromkeys(row["document"].tolist())):
            mine = row["document"] == number
            text = found.setdefault(number, ["", []])
            text[0] += TOKENIZER.decode(row["input_ids"][mine])
            text[1].append(known[n] if known is not None else {})
    return [found[number] for number in sorted(found)]


TEXTS = st.lists(st.text("ab ", max_size=30), min_size=1, max_size=30).filter(any)


@settings(max_examples=25, suppress_health_check=list(HealthCheck), deadline=None)
@given(texts=TEXTS, layout=st.sampled_from(["pack", "one", "chunk"]), block=st.integers(4, 20))
def test_a_document_keeps_its_columns_wherever_its_pieces_lie(texts, layout, block):
    given = [document(text, text=text, n=n) for n, text in enumerate(texts)]
    source = data(given, rows=layout, block=block, cut="split")
    rows = pack_texts(source, "train", TOKENIZER)
    for text, columns in columns_by_text(rows):
        assert all(each == columns[0] for each in columns)
        assert (columns[0]["text"] + TOKENIZER.eos_token).startswith(text.strip("\n")[:3])
    filled = [each["columns"] for each in given if each["text"]]
    assert list(rows.columns()) == filled


@settings(max_examples=15, suppress_health_check=list(HealthCheck), deadline=None)
@given(texts=TEXTS, window=st.integers(1, 5))
def test_streams_keep_them_too(texts, window):
    given = [document(text, text=text) for text in texts]
    stream = stream_texts(data(given, rows="one", block=40), "train", TOKENIZER, window=window)
    rows = list(stream)
    said = [TOKENIZER.decode(row["input_ids"][:-1]) for row in rows]
    assert said == [text for text in texts if text]
    assert [each["text"] for row in rows for each in row["columns"]] == said


def test_a_document_without_ids_takes_its_columns_along(monkeypatch):
    """A normaliser may leave nothing of a text that is not empty."""
    from tokenizers import normalizers

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("x", "")
    given = [document("ab", n=0), document("xx", n=1), document("", n=2), document("ba", n=3)]
    rows = pack_texts(data(given, eos=False), "train", tokenizer)
    assert rows.dropped == 2
    assert [columns["n"] for columns in rows.columns()] == [0, 3]


def test_complete_ids_mix_with_texts():
    given = [{"input_ids": [5, 6, 7], "columns": {"n": 0}}, document("a", n=1), "b"]
    rows = pack_texts(data(given, rows="one"), "train", TOKENIZER)
    assert rows[0]["input_ids"].tolist() == [5, 6, 7]
    assert rows[1]["input_ids"][-1] == TOKENIZER.eos_token_id
    assert [dict(row["columns"][0]) for row in rows] == [{"n": 0}, {"n": 1}, {}]


def test_other_columns_are_the_same_tokens():
    """They have a fingerprint of their own: a teacher's cache stays good."""
    one, other, none = (
        pack_texts(data(given), "train", TOKENIZER)
        for given in ([document("abc", d="x")], [document("abc", d="y")], ["abc"])
    )
    assert one.split.fingerprint == other.split.fingerprint == none.split.fingerprint
    assert [list(rows.columns()) for rows in (one, other, none)] == [[{"d": "x"}], [{"d": "y"}], []]
    assert "columns" not in none[0]


def test_texts_without_columns_are_stored_as_they_were():
    key = tokenise(data(["abc", "de"]), "train", TOKENIZER)
    assert key.columns is None and key.checksum() == key.fingerprint()


def test_documents_of_ids_keep_theirs_on_disk():
    asked = []

    def documents():
        asked.append(1)
        yield {"input_ids": [1, 2, 3], "columns": {"d": "x"}}
        yield {"input_ids": []}
        yield {"input_ids": [4, 5], "labels": [-100, 5]}

    for _ in range(2):
        rows = pack_documents(data([], rows="one"), "train", documents, key="columns of ids")
        assert list(rows.columns()) == [{"d": "x"}, {}]
        assert [dict(row["columns"][0]) for row in rows] == [{"d": "x"}, {}]
    assert len(asked) == 1


def test_texts_are_those_of_the_documents():
    source = data([document("a", n=1), {"input_ids": [1]}, "b"])
    assert list(source.texts("train")) == ["a", "b"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"text": "a", "columns": {"n": [1]}}, "a document with a list in the column 'n'"),
        ({"text": "a", "columns": 3}, "a document with columns of type int"),
        ({"text": 3}, "gave int, expected str"),
        ({"input_ids": ["a"]}, "'input_ids' of shape"),
        ({"input_ids": [1, 2], "labels": [1, 2]}, "labels, which pack_documents takes"),
    ],
)
def test_invalid_documents_are_refused(given, said):
    with pytest.raises(PluginError, match=said):
        pack_texts(data([given]), "train", TOKENIZER)


def test_a_stream_resumes_with_its_columns():
    given = [document(f"{'ab' * (n % 5 + 1)}", n=n) for n in range(40)]
    stream = stream_texts(data(given, rows="one", block=16), "train", TOKENIZER, window=2)
    (place, _), *rest = islice(stream.windows(stream_place()), 3)
    again = [rows for _, rows in islice(stream.windows(place), 2)]
    for (_, one), other in zip(rest, again, strict=True):
        assert [list(row["columns"]) for row in one] == [list(row["columns"]) for row in other]
        assert np.concatenate([row["document"] for row in other]).min() > 0


def stream_place():
    from kdcore.data.streaming import Place

    return Place()

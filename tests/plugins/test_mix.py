"""Mixtures: shares, what ends an epoch, columns, and exact resume."""

import json
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kdcore_mix import Mix, kdcore_data
from kdcore_sft import Sft
from kdcore_text import Text

from kdcore import Data, component
from kdcore.data.given import as_rows
from kdcore.data.sampler import StreamedRows
from kdcore.data.streaming import Stream
from kdcore.testing.fakes import tiny_tokenizer

pytestmark = pytest.mark.slow

TOKENIZER = tiny_tokenizer()


@component
class Counted(Data):
    """So many one-letter documents, a row each."""

    name = "counted"
    letter: str
    count: int
    level: int | None = None

    def documents(self, split):
        count = self.count if split == "train" else 2
        for n in range(count):
            columns = {} if self.level is None else {"columns": {"level": self.level}}
            yield {"text": f"{self.letter}{n:03}", **columns}


@component
class Streamed(Counted):
    """The same as a stream."""

    name = "streamed"
    streams = True

    def make_rows(self, split, tokenizer, *, seed, epoch):
        from kdcore import stream_texts

        return stream_texts(self, split, tokenizer, window=5)


def counted(letter, count, cls=Counted, **more):
    return cls(letter=letter, count=count, rows="one", **more)


def mix(stop="first_exhausted", shares=None, **members):
    return Mix(members=members, shares=shares, stop=stop, buffer=7)


def rows(data, epoch=0, split="train", seed=0):
    return data.make_rows(split, TOKENIZER, seed=seed, epoch=epoch)


def said(some):
    return [TOKENIZER.decode(row["input_ids"][:-1]) for row in some]


def members_of(some):
    return [dict(each)["member"] for row in some for each in columns_in(row)]


def columns_in(row):
    given = row["columns"]
    return [given] if isinstance(given, dict) else given


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    shares=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    stop=st.sampled_from(["first_exhausted", "all_exhausted"]),
)
def test_rows_are_in_the_chosen_shares(sizes, shares, stop):
    names = ["a", "b", "c", "d"][: len(sizes)]
    total = sum(shares[: len(sizes)])
    each = [share / total for share in shares[: len(sizes)]]
    made = mix(
        stop,
        dict(zip(names, shares, strict=False)),
        **{name: counted(name, size) for name, size in zip(names, sizes, strict=True)},
    )
    found = Counter(members_of(rows(made)))
    fill = min if stop == "first_exhausted" else max
    whole = fill(size / share for size, share in zip(sizes, each, strict=True))
    for name, size, share in zip(names, sizes, each, strict=True):
        assert found[name] == max(1, int(whole * share + 1e-6))
        if stop == "first_exhausted":
            assert found[name] <= size or found[name] == 1
        else:
            assert found[name] >= size


def test_no_row_comes_twice_before_all_have_come():
    made = mix(shares={"a": 1, "b": 1}, a=counted("a", 4), b=counted("b", 10))
    seen = [text for epoch in range(5) for text in said(rows(made, epoch)) if text[0] == "b"]
    assert len(seen) == 20
    for some in (seen[:10], seen[10:]):
        assert len(set(some)) == 10
    assert seen[:10] != seen[10:]
    other = [text for text in said(rows(made, 0, seed=1)) if text[0] == "b"]
    assert other != seen[:4]


def test_without_shares_all_rows_are_taken_once():
    found = said(rows(mix(a=counted("a", 3), b=counted("b", 5))))
    assert sorted(found) == [f"a{n:03}" for n in range(3)] + [f"b{n:03}" for n in range(5)]


def test_a_member_that_does_not_end_is_read_again():
    found = said(rows(mix("all_exhausted", {"a": 1, "b": 1}, a=counted("a", 2), b=counted("b", 6))))
    assert Counter(text[0] for text in found) == {"a": 6, "b": 6}
    assert Counter(found)["a000"] == Counter(found)["a001"] == 3


def test_documents_have_numbers_of_their_own_and_their_columns():
    made = rows(mix(a=counted("a", 3, level=1), b=counted("b", 4)))
    numbers = [row["document"][0] for row in made]
    assert sorted(numbers) == list(range(7))
    lengths = made.split.lengths
    begins = np.concatenate([[0], np.cumsum(lengths)])
    for row in made:
        number = row["document"][0]
        place = np.arange(begins[number], begins[number + 1])
        assert made.ids(place).tolist() == row["input_ids"].tolist()
    columns = [dict(each) for each in made.columns()]
    assert columns == [{"level": 1, "member": "a"}] * 3 + [{"member": "b"}] * 4
    for row in made:
        (each,) = columns_in(row)
        assert dict(each) == columns[row["document"][0]]


def test_validation_is_all_of_all():
    made = mix(shares={"a": 9, "b": 1}, a=counted("a", 3), b=counted("b", 5))
    assert said(rows(made, split="validation")) == ["a000", "a001", "b000", "b001"]


def test_the_texts_are_the_members():
    made = mix(a=counted("a", 1, level=2), b=counted("b", 1))
    assert list(made.texts("train")) == ["a000", "b000"]
    assert list(made.documents("train")) == [
        {"text": "a000", "columns": {"level": 2, "member": "a"}},
        {"text": "b000", "columns": {"member": "b"}},
    ]


def test_answers_and_plain_text_together(tmp_path):
    plain, asked = tmp_path / "plain.jsonl", tmp_path / "asked.jsonl"
    plain.write_text("\n".join(json.dumps({"text": f"text {n}", "d": "x"}) for n in range(4)))
    asked.write_text("\n".join(json.dumps({"prompt": "a", "completion": "b"}) for _ in range(4)))
    made = Mix(
        block=32,
        members={
            "plain": Text(path=str(plain), validation=str(plain), keep_columns=["d"]),
            "asked": Sft(path=str(asked), validation=str(asked), template="plain"),
        },
    )
    assert made.column_names() == ["d", "member"]
    found = rows(made)
    assert {"labels" in row for row in found} == {True, False}
    assert {tuple(each.values()) for each in found.columns()} == {("x", "plain"), ("asked",)}


# Streams


@pytest.mark.parametrize("stop", ["first_exhausted", "all_exhausted"])
def test_a_stream_is_in_the_chosen_shares_and_ends(stop):
    made = mix(stop, {"a": 1, "b": 3}, a=counted("a", 100, Streamed), b=counted("b", 200))
    assert made.streams
    found = list(rows(made))
    count = Counter(members_of(found))
    assert count["b"] / len(found) == pytest.approx(0.75, abs=0.05)
    texts = said(found)
    if stop == "first_exhausted":
        assert len(set(texts)) == len(texts) and count["b"] == 200
    else:
        assert count["a"] == 100 and len(set(texts)) == 300
    assert said(rows(made)) == texts != said(rows(made, epoch=1))


def test_documents_of_a_stream_have_numbers_of_their_own():
    made = mix(shares={"a": 1, "b": 1}, a=counted("a", 20, Streamed), b=counted("b", 20))
    found = list(rows(made))
    numbers = {row["document"][0]: text for row, text in zip(found, said(found), strict=True)}
    assert len(numbers) == len(found)


@pytest.mark.parametrize("stop", ["first_exhausted", "all_exhausted"])
@pytest.mark.parametrize("members", ["both", "one"])
def test_a_stream_resumes_exactly_wherever_it_was(stop, members):
    kind = Streamed if members == "both" else Counted

    def made():
        data = mix(stop, {"a": 2, "b": 3}, a=counted("a", 11, Streamed), b=counted("b", 23, kind))
        return StreamedRows(lambda epoch: rows(data, epoch, seed=3), batch=4, seed=3)

    whole = made()
    steps = [said(whole.step(n)) for n in range(1, 31)]
    for at in range(0, 30, 3):
        one = made()
        for n in range(1, at + 1):
            one.step(n)
        state = json.loads(json.dumps(one.state_dict(at)))
        other = made()
        other.load_state_dict(state)
        assert [said(other.step(n)) for n in range(at + 1, 31)] == steps[at:]


def test_validation_of_a_stream_takes_turns():
    made = mix(shares={"a": 1, "b": 1}, a=counted("a", 9, Streamed), b=counted("b", 9, Streamed))
    found = as_rows(rows(made, split="validation"), "validation")
    assert said(found) == ["a000", "b000", "a001", "b001"]
    assert members_of(found) == ["a", "b", "a", "b"]
    assert len({row["document"][0] for row in found}) == 4
    assert isinstance(rows(made), Stream) and not isinstance(found, Stream)


# What is refused


def test_a_member_has_no_block_of_its_own():
    assert mix(a=counted("a", 1)).members["a"].block == 512
    with pytest.raises(ValueError, match="block belongs next to members, not in a"):
        Mix(members={"a": counted("a", 1, block=64)}, block=128)
    assert Mix(members={"a": counted("a", 1)}, block=128).members["a"].block == 128


def test_shares_name_the_members():
    with pytest.raises(ValueError, match="shares names the members, which are a, b"):
        mix(shares={"a": 1}, a=counted("a", 1), b=counted("b", 1))


def test_faults():
    recipe = SimpleNamespace(data=None, train=SimpleNamespace(steps=None))
    assert not list(mix(a=counted("a", 1)).faults(recipe))
    (said,) = Mix(members={"a": counted("a", 1)}, rows="chunk").faults(recipe)
    assert said.startswith("rows belongs in the members")
    streamed = mix(a=counted("a", 1, Streamed))
    recipe.data = streamed
    one, other = streamed.faults(recipe)
    assert "set train.steps" in one and "needs shares" in other


def test_order_is_that_of_the_same_epoch_again():
    made = mix(shares={"a": 1, "b": 1}, a=counted("a", 4), b=counted("b", 10))
    again = mix(shares={"a": 1, "b": 1}, a=counted("a", 4), b=counted("b", 10))
    for epoch in range(3):
        assert said(rows(made, epoch)) == said(rows(again, epoch))
    assert kdcore_data() == [Mix]
    assert list(islice(iter(rows(made)), 0)) == []

"""Damage to the train split, and to nothing else."""

import re
from collections import Counter

import pytest
from kdcore_noisy import Noisy
from pydantic import ValidationError

from kdcore import Data, component

WORDS = "the quick brown fox jumps over the lazy dog while nobody looks"
DOCUMENT = "\n".join([f"{WORDS} {n}" for n in range(20)] + [""])


@component
class Clean(Data):
    name = "clean"

    def texts(self, split):
        return [DOCUMENT] * 50


def damaged(**options):
    return list(Noisy(source=Clean(), **options).texts("train"))


def by_kind(document):
    kinds = Counter()
    for before, after in zip(DOCUMENT.split("\n")[:-1], document.split("\n"), strict=False):
        if before == after:
            kinds["clean"] += 1
        elif sorted(before.split()) == sorted(after.split()):
            kinds["shuffled"] += 1
        else:
            assert len(before) == len(after)
            assert re.sub("[a-z]", "x", before) == re.sub("[a-z]", "x", after)
            kinds["mistyped"] += 1
    return kinds


def test_half_of_the_lines_are_damaged_in_two_ways():
    kinds = sum(map(by_kind, damaged()), Counter())
    assert kinds.total() == 1000
    assert 450 < kinds["clean"] < 550
    assert 200 < kinds["shuffled"] < 300
    assert 200 < kinds["mistyped"] < 300


def test_a_third_of_the_letters_is_replaced():
    replaced = total = 0
    for document in damaged(share=1.0):
        for before, after in zip(DOCUMENT.split("\n"), document.split("\n"), strict=True):
            if sorted(before.split()) != sorted(after.split()):
                replaced += sum(a != b for a, b in zip(before, after, strict=True))
                total += sum(map(str.isalpha, before))
    assert 0.30 < replaced / total < 0.37


def test_the_share_may_be_nothing_or_everything():
    assert damaged(share=0.0) == [DOCUMENT] * 50
    assert sum(map(by_kind, damaged(share=1.0)), Counter())["clean"] < 5


def test_damage_is_drawn_by_seed_and_document():
    assert damaged() == damaged()
    assert damaged() != damaged(seed=1)
    assert len(set(damaged())) == 50


def test_validation_stays_clean():
    noisy = Noisy(source=Clean(), share=1.0)
    assert list(noisy.texts("validation")) == [DOCUMENT] * 50


def test_the_layout_of_rows_is_set_once():
    with pytest.raises(ValidationError, match="block belongs next to source, not in it"):
        Noisy(source=Clean(block=64))
    Noisy(source=Clean(block=64), block=64)


def test_the_fingerprint_is_the_sources_too():
    assert "source=clean(" in Noisy(source=Clean()).fingerprint()


def test_columns_of_the_source_stay(tmp_path):
    import json

    from kdcore_text import Text

    path = tmp_path / "a.jsonl"
    records = [{"text": f"some words of text {n}", "d": f"{n % 2}"} for n in range(6)]
    path.write_text("\n".join(map(json.dumps, records)))
    source = Text(path=str(path), validation=str(path), keep_columns=["d"])
    noisy = Noisy(source=source, share=1.0)
    for split in ("train", "validation"):
        each = list(noisy.documents(split))
        assert [one["text"] for one in each] == list(noisy.texts(split))
        assert [one["columns"] for one in each] == [{"d": f"{n % 2}"} for n in range(6)]
    assert noisy.column_names() == ["d"]
    assert list(noisy.texts("train")) != [one["text"] for one in records]

"""Tokens read from disk in many parts."""

import numpy as np
import pytest

from kdcore import Data, component
from kdcore.data import tokenized
from kdcore.data.rows import pack_texts
from kdcore.data.tokenized import tokenise

WORDS = [f"{'word' * (n % 5)} {n}" for n in range(300)]


@component
class Words(Data):
    name = "words"

    def texts(self, split):
        return WORDS


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(tokenized, "_CALL", 40)
    monkeypatch.setattr(tokenized, "_WRITE", 3)


def test_pieces_are_taken_from_all_parts(byte_tokenizer, small_parts, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    store = tokenise(Words(), "train", byte_tokenizer)
    assert len(store._parts) > 10
    ids = [byte_tokenizer(word)["input_ids"] + [0] for word in WORDS]
    assert store.lengths.tolist() == [len(each) for each in ids]
    chosen = np.array([299, 0, 17, 18, 150])
    places = store.locate(chosen, np.ones(5, np.int32))
    taken = store.take(places, store.lengths[chosen] - 1)
    assert taken.tolist() == [token for n in chosen for token in ids[n][1:]]
    flat = np.array([token for each in ids for token in each])
    anywhere = np.random.default_rng(0).integers(0, len(flat), 500)
    assert np.array_equal(store.at(anywhere), flat[anywhere])
    text = byte_tokenizer.decode(
        pack_texts(Words(rows="chunk"), "train", byte_tokenizer)[0]["input_ids"]
    )
    assert "<|endoftext|>".join(WORDS).startswith(text)


def test_parts_lie_in_mapped_memory(byte_tokenizer):
    store = tokenise(Words(), "train", byte_tokenizer)
    assert not store._parts[0].flags.owndata
    assert not store._parts[0].flags.writeable


def test_parts_do_not_matter_to_the_fingerprint(byte_tokenizer, small_parts, tmp_path, monkeypatch):
    import datasets

    whole = tokenise(Words(), "train", byte_tokenizer).fingerprint()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    assert tokenise(Words(), "train", byte_tokenizer).fingerprint() == whole


def test_many_texts_are_tokenised_by_several_processes(
    byte_tokenizer, small_parts, tmp_path, monkeypatch
):
    import datasets

    asked, real = [], tokenized.map_in_order
    one = tokenise(Words(), "train", byte_tokenizer).fingerprint()

    def in_order(work, items, processes):
        asked.append(processes)
        return real(work, items, processes)

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(tokenized, "_LARGE", 0)
    monkeypatch.setattr(tokenized, "cpu_count", lambda: 2)
    monkeypatch.setattr(tokenized, "map_in_order", in_order)
    assert tokenise(Words(), "train", byte_tokenizer).fingerprint() == one
    assert asked == [2]

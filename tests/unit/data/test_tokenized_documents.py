"""Documents that are ids and labels already become rows."""

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdcore import Data, PluginError, RunError, component, pack_documents
from kdcore.data import tokenized

pytestmark = pytest.mark.slow


@component
class Empty(Data):
    name = "empty"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(tokenized, "_CALL", 12)


def dataset(documents, key="k", split="train", **options):
    return pack_documents(Empty(**options), split, lambda: documents, key=key)


def document(length, prompt, start=0):
    ids = list(range(start, start + length))
    return {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]}


lengths = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=8)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths, st.sampled_from(["pack", "one"]), st.integers(2, 12))
def test_labels_stay_with_their_ids(sizes, layout, block):
    documents = [document(n + 1, min(p, n + 1), 100 * at) for at, (n, p) in enumerate(sizes)]
    rows = dataset(documents, f"{sizes}", rows=layout, block=block)
    for row in rows:
        for at, label, which, offset in zip(*(row[k] for k in KEYS), strict=True):
            assert documents[which]["input_ids"][offset] == at
            assert documents[which]["labels"][offset] == label
        assert row["labels"].dtype == np.int32


KEYS = ("input_ids", "labels", "document", "offset")


def test_without_labels_all_of_it_is_trained():
    rows = dataset([{"input_ids": [5, 6, 7]}], "all")
    assert rows[0]["labels"].tolist() == [5, 6, 7]


def test_they_are_asked_for_once():
    dataset([document(4, 2)], "once")
    again = pack_documents(Empty(), "train", lambda: pytest.fail("asked again"), key="once")
    assert again[0]["labels"].tolist() == [-100, -100, 2, 3]


def test_the_fingerprint_knows_what_is_trained():
    prints = {dataset([document(4, prompt)], f"{prompt}").split.fingerprint for prompt in (1, 2)}
    assert len(prints) == 2


@pytest.mark.parametrize(
    "document, said",
    [
        ({"input_ids": [1, 2], "labels": [1]}, "document 0 of 'train' has 1 labels for 2 ids"),
        ({"input_ids": [[1, 2]]}, r"'input_ids' of shape \[1, 2\]"),
        ({"input_ids": ["a"]}, "whole numbers"),
        ({"input_ids": [1, 2], "labels": [0.5, 1.0]}, "'labels' of shape .* float64"),
    ],
)
def test_what_is_wrong_is_said(document, said):
    with pytest.raises(PluginError, match=said):
        dataset([document], said)


@pytest.mark.parametrize("documents", [[], [{"input_ids": []}]])
def test_nothing_to_train_on(documents):
    with pytest.raises(RunError, match="too short to train on"):
        dataset(documents, f"{documents}")

"""Columns of the documents of a batch."""

import numpy as np
import pytest
import torch

from kdcore import PluginError, Split
from kdcore.data.batch import columns_of
from kdcore.data.collate import Collate
from kdcore.data.given import GivenRows
from kdcore.data.where import matches


def batch(*rows):
    return Collate(Split("train", "", np.empty(0)), 64, torch.device("cpu"))(rows)


def row(documents, **more):
    count = len(documents)
    made = {"input_ids": range(1, count + 1), "document": documents, "offset": range(count)}
    return made | more


@pytest.mark.parametrize(
    ("columns", "where", "expected"),
    [
        ({"a": "x"}, {"a": "x"}, True),
        ({"a": "x"}, {"a": ["y", "x"]}, True),
        ({"a": "x"}, {"a": "y"}, False),
        ({"a": "x", "b": 1}, {"a": "x", "b": 1.0}, True),
        ({"a": "x", "b": 1}, {"a": "x", "b": 2}, False),
        ({"a": "1"}, {"a": 1}, False),
        ({}, {"a": "x"}, False),
        ({}, {"source": "data"}, True),
        ({"source": "student"}, {"source": "data"}, False),
    ],
)
def test_all_columns_must_match_one_of_their_values(columns, where, expected):
    assert matches(columns, where) is expected


def test_each_document_of_a_row_has_its_own_in_the_order_in_which_they_begin():
    one = row([7, 7, 3, 7, 3, 3], columns=[{"a": "of seven"}, {"a": "of three"}])
    values, slots = columns_of(batch(one)).values("a")
    # The third position predicts a token of document 7, and the last one nothing.
    assert [values[n] for n in slots] == [
        *["of seven", "of three", "of seven", "of three", "of three", "of three"]
    ]


def test_padding_matches_nothing():
    made = batch(row([0, 0, 0, 0]), row([1, 1]))
    found = columns_of(made).matches({"source": "data"})
    assert found.tolist() == [True] * 6 + [False] * 2


def test_nothing_is_looked_up_before_it_is_asked_for():
    class Refusing(list):
        def __iter__(self):
            raise AssertionError("columns that nobody asked for")

        __getitem__ = __iter__

    made = batch(row([0, 0], columns=Refusing([{}])))
    assert len(made.valid) == 1


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"a": None}, "row 0 of 'train' has a NoneType in the column 'a'"),
        ({1: "x"}, "row 0 of 'train' has a column called 1, and names are text"),
        ([{"a": 1}, {"a": 2}, {"a": 3}], "row 0 of 'train' has 3 columns for 2 documents"),
        ("math", "row 0 of 'train' has columns of type str"),
    ],
)
def test_invalid_columns_are_refused(columns, said):
    with pytest.raises(PluginError, match=said):
        GivenRows([row([0, 0, 1], columns=columns)], "train", "data 'x'")


def test_columns_are_no_part_of_the_tokens():
    plain, other = (
        GivenRows([row([0, 0, 0], **more)], "train", "data 'x'")
        for more in ({}, {"columns": {"a": 1}})
    )
    assert plain.split.fingerprint == other.split.fingerprint
    assert other.row(0)["columns"] == {"a": 1}

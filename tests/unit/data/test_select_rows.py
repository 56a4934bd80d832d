"""Some rows of a batch: what collating these rows alone would have given."""

from dataclasses import fields

import given
import numpy as np
import pytest
import torch
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from kdcore import Split, select_rows
from kdcore.data.collate import Collate

COLLATE = Collate(Split("train", "", np.empty(0)), given.VOCABULARY, torch.device("cpu"))
KINDS = {
    "packed": given.packed_rows(),
    "single": given.single_rows(),
    "columns": given.rows_with_columns(),
}


def equal(one, other):
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    return one == other


@settings(deadline=None)
@for_all(
    kind=st.sampled_from(list(KINDS)),
    rows=st.lists(st.integers(0, 7), min_size=1, max_size=8, unique=True),
)
def test_it_is_the_batch_of_these_rows(kind, rows):
    found = select_rows(COLLATE(KINDS[kind]), rows)
    expected = COLLATE([KINDS[kind][n] for n in rows])
    for name in ("input_ids", "document", "offset", "labels", "valid"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    real = expected.document >= 0
    assert torch.equal(found.position_ids[real], expected.position_ids[real])
    for field in fields(expected.packing):
        assert equal(getattr(found.packing, field.name), getattr(expected.packing, field.name))
    for name in ("document", "offset", "valid"):
        assert (getattr(found.on_host, name) == getattr(expected.on_host, name)).all()
    for where in ({"domain": "math"}, {"level": [0, 2]}, {"source": "data"}):
        assert (found.columns.matches(where) == expected.columns.matches(where)).all()


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@for_all(rows=st.lists(st.integers(0, 7), min_size=1, max_size=8, unique=True))
def test_a_model_sees_the_same(rows):
    model = given.proved(given.model(double=True))
    for kind in KINDS.values():
        batch = COLLATE(kind)
        some, width = select_rows(batch, rows), batch.input_ids.shape[1]
        with torch.no_grad():
            whole, part = model.states(batch), model.states(some)
        for n, row in enumerate(rows):
            real = int((some.document[n] >= 0).sum())
            theirs = part[n * some.input_ids.shape[1] :][:real]
            torch.testing.assert_close(theirs, whole[row * width :][:real])


def test_a_batch_without_what_the_host_knew():
    from dataclasses import replace

    batch = COLLATE(KINDS["packed"])
    bare = replace(batch, packing=None)
    assert bare.on_host is None
    found = select_rows(bare, [2, 0])
    assert found.packing is None
    assert torch.equal(found.valid, select_rows(batch, [2, 0]).valid)

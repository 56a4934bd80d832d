"""The laws of laying rows, on lengths alone."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcore.data import packing

pytestmark = pytest.mark.slow

lengths = st.lists(st.integers(1, 40), max_size=60).map(lambda x: np.array(x, np.int64))
blocks = st.integers(2, 17)


def tokens(pieces):
    """(document, offset) of every token, row by row."""
    rows = []
    for start, end in zip(pieces.starts[:-1], pieces.starts[1:], strict=True):
        some = zip(
            pieces.document[start:end].tolist(),
            pieces.offset[start:end].tolist(),
            pieces.length[start:end].tolist(),
            strict=True,
        )
        rows.append([(d, at) for d, offset, n in some for at in range(offset, offset + n)])
    return rows


def flat(rows):
    return list(chain.from_iterable(rows))


def everything(lengths):
    return [(d, at) for d, length in enumerate(lengths.tolist()) for at in range(length)]


@given(lengths, blocks)
def test_pack_has_every_token_once_and_no_row_too_long(lengths, block):
    pieces = packing.pack(lengths, block)
    rows = tokens(pieces)
    assert sorted(flat(rows)) == everything(lengths)
    assert all(1 <= len(row) <= block for row in rows)
    assert pieces.row_lengths().tolist() == [len(row) for row in rows]
    assert pieces.isolated


@given(lengths, blocks)
def test_pack_cuts_only_what_is_longer_than_a_row(lengths, block):
    pieces = packing.pack(lengths, block)
    counts = np.bincount(pieces.document, minlength=len(lengths))
    assert counts.tolist() == (-(-lengths // block)).tolist()
    assert (pieces.offset % block == 0).all()


@given(lengths, blocks)
def test_pack_leaves_no_two_rows_that_fit_in_one(lengths, block):
    filled = packing.pack(lengths, block).row_lengths()
    least = np.sort(filled)[:2]
    assert len(filled) < 2 or least.sum() > block


@given(lengths, blocks)
def test_chunk_is_everything_in_order_in_full_rows(lengths, block):
    pieces = packing.chunk(lengths, block)
    rows, wanted = tokens(pieces), everything(lengths)
    if len(wanted) % block == 1:
        del wanted[-1]
    assert flat(rows) == wanted
    assert all(len(row) == block for row in rows[:-1])
    assert all(2 <= len(row) <= block for row in rows)
    assert not pieces.isolated


@given(lengths, blocks, st.integers(0, 16))
def test_chunk_may_begin_to_cut_later(lengths, block, start):
    rows, wanted = tokens(packing.chunk(lengths, block, start)), everything(lengths)
    first = wanted[:start] if start >= 2 else []
    rest = wanted[len(first) :]
    cuts = [first, *(rest[at : at + block] for at in range(0, len(rest), block))]
    assert rows == [row for row in cuts if len(row) >= 2]


@given(lengths, blocks, st.integers(0, 3))
def test_shifted_chunks_are_full_rows_that_begin_within_their_own(lengths, block, seed):
    made = [packing.shifted_chunk(lengths, block, np.random.default_rng(seed)) for _ in range(2)]
    (rows, again), wanted = map(tokens, made), everything(lengths)
    assert rows == again
    assert len(rows) == max(len(wanted) // block - 1, 0)
    for n, row in enumerate(rows):
        first = wanted.index(row[0])
        assert 0 <= first - n * block < block
        assert row == wanted[first : first + block]


@given(lengths, blocks)
def test_one_keeps_the_beginning_or_the_end(lengths, block):
    kept = [d for d, length in enumerate(lengths.tolist()) if length >= 2]
    right = tokens(packing.one(lengths, block, "right"))
    left = tokens(packing.one(lengths, block, "left"))
    wanted = [[(d, at) for at in range(lengths[d])] for d in kept]
    assert right == [row[:block] for row in wanted]
    assert left == [row[-block:] for row in wanted]


@given(lengths, blocks)
def test_one_split_continues_in_the_next_row(lengths, block):
    rows = tokens(packing.one(lengths, block, "split"))
    wanted = everything(lengths)
    assert all(2 <= len(row) <= block and len({d for d, _ in row}) == 1 for row in rows)
    left_out = sorted(set(wanted) - set(flat(rows)))
    assert flat(rows) == [token for token in wanted if token not in left_out]
    assert all(offset % block == 0 and offset == lengths[d] - 1 for d, offset in left_out)


def test_packed_stories_waste_almost_nothing():
    lengths = np.random.default_rng(0).integers(40, 260, 20_000)
    filled = packing.pack(lengths, 512).row_lengths()
    assert filled.mean() > 0.98 * 512


def test_equal_lengths_are_packed_equally():
    lengths = np.random.default_rng(0).integers(1, 600, 9_000)
    first, second = (packing.pack(lengths, 512) for _ in range(2))
    assert first.document.tolist() == second.document.tolist()
    assert first.starts.tolist() == second.starts.tolist()


def test_a_first_cut_behind_the_end_leaves_one_row():
    """And none of a single token, which predicts nothing."""
    assert tokens(packing.chunk(np.array([5]), 4, 8)) == [[(0, n) for n in range(5)]]
    assert tokens(packing.chunk(np.array([1]), 2, 3)) == []

"""context = "document" of the teacher `cached`: windows over whole documents, however rows lie."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from caching import (
    LENGTHS,
    ROWS,
    Spy,
    batches,
    cached,
    live,
    loads,
    run_in,
    some_documents,
    values,
)
from kdcore_cached import CachedTeacher
from kdcore_cached.windows import Window, Windows, own_length
from kdcore_ensemble import Ensemble

from kdcore import Data, RunError, Split, UsageError, read, read_nll
from kdcore.objective.teachers import read_outputs
from kdcore.testing.fakes import TableTeacher

pytestmark = pytest.mark.slow

WHOLE = {"context": "document"}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # padding beside other windows rounds otherwise


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.save(folder, "llama")
    return folder


def whole_documents(some=None):
    """A row for each, none cut."""
    documents = some_documents() if some is None else some
    layout = [[(n, 0, len(each))] for n, each in enumerate(documents)]
    return tiny.batch(documents, layout, split=tiny.split_of(some_documents()))


def by_slot(batch, found):
    """What was found of each predicted token, by its place in the text."""
    starts = np.concatenate([[0], np.cumsum(batch.split.lengths)])
    document, offset = batch.document.flatten(), batch.offset.flatten()
    slots = torch.from_numpy(starts)[document[batch.valid + 1]] + offset[batch.valid + 1]
    return dict(zip(slots.tolist(), found, strict=True))


# Windows


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize("length", [2, 3, 5, 8, 100])
def test_every_token_is_reported_by_one_window_with_half_of_it_before(length, isolated):
    lengths = np.array([7, 0, 20, 1, 9])
    windows = Windows(Split("train", "x", lengths), length, isolated=isolated)
    found = windows.over(np.arange(lengths.sum()))
    told = np.zeros(lengths.sum(), int)
    for window in found:
        assert window.end - window.begin <= length
        told[window.first : window.end] += 1
    ends = np.cumsum(lengths)
    firsts = {0, 7, 27, 28} if isolated else {0}
    assert {n for n in range(37) if told[n] == 0} == firsts and told.max() == 1

    def text(slot):
        return np.searchsorted(ends, slot, side="right") if isolated else 0

    for window in found:
        starts_text = window.begin == 0 or text(window.begin - 1) != text(window.begin)
        assert starts_text or window.first - window.begin >= length - length // 2
        assert text(window.begin) == text(window.end - 1)


def test_only_the_windows_that_are_asked_for():
    windows = Windows(Split("train", "x", np.array([7, 20])), 8, isolated=True)
    assert windows.over(np.array([3])) == [Window(0, 1, 7)]
    assert windows.over(np.array([14, 15, 16])) == [Window(7, 8, 15), Window(11, 15, 19)]


def test_windows_of_like_lengths_go_together():
    documents = some_documents()
    flat = np.concatenate(documents)
    (like,) = batches((5,))
    windows = Windows(like.split, 100, isolated=True)  # beside a batch of five rows of nine
    made = list(windows.batches(windows.over(np.arange(40)), like, lambda at: flat[at]))
    assert [tuple(batch.input_ids.shape) for batch in made] == [(3, 9), (1, 20)]
    seen = torch.cat([batch.input_ids[batch.document >= 0] for batch in made])
    assert sorted(seen.tolist()) == sorted(flat.tolist())
    for batch in made:
        assert (batch.labels[batch.valid] == batch.input_ids.flatten()[batch.valid + 1]).all()
        assert batch.attention_mask is not None or (batch.document >= 0).all()


# Against the live teacher


def test_equal_to_the_live_teacher_on_whole_documents_everywhere(tmp_path, model):
    """Also the second document, which the rows cut in three pieces."""
    run = run_in(tmp_path)
    document = whole_documents()
    expected = by_slot(document, values(live(run, model), document))
    teacher, of_rows = cached(run, model, **WHOLE), cached(run, model)
    apart = []
    for batch in batches():
        for slot, found in by_slot(batch, values(teacher, batch)).items():
            torch.testing.assert_close(found, expected[slot], **CLOSE)
        pieces = by_slot(batch, values(of_rows, batch))
        apart += [slot for slot in pieces if abs(pieces[slot] - expected[slot]) > 0.01]
    # What rows see differs behind the cuts of the second document, and nowhere else.
    assert len(apart) > 5 and set(apart) < set(range(7 + 8, 27))


def test_top_k_on_whole_documents(tmp_path, model):
    run = run_in(tmp_path)
    document = whole_documents()
    logs = read(live(run, model), document)(document.valid).log_softmax(-1)
    expected = by_slot(document, logs)
    teacher = cached(run, model, kind="topk", k=5, **WHOLE)
    for batch in batches():
        ids, found, _ = read_outputs(teacher, batch)(batch.valid)
        for slot, row, masses in zip(by_slot(batch, ids), ids, found, strict=True):
            known, likeliest = expected[slot].topk(5)
            assert torch.equal(row, likeliest)
            torch.testing.assert_close(masses[:5], known, rtol=1e-3, atol=1e-3)


def test_longer_documents_are_read_in_windows(tmp_path, model):
    run = run_in(tmp_path)
    teacher, alive = cached(run, model, window=8, **WHOLE), live(run, model)
    documents = some_documents()
    found = {}
    for batch in batches():
        found |= by_slot(batch, values(teacher, batch))
    # The second document begins at slot 7: its windows begin at 0, 4, 8 and 12.
    for begin, first in ((0, 1), (4, 8), (8, 12), (12, 16)):
        window = tiny.batch(documents, [[(1, begin, begin + 8)]])
        exact = read_nll(alive, window)(window.valid, window.labels[window.valid])
        for offset in range(first, min(begin + 8, 20)):
            if 7 + offset in found:  # the first token of a piece is predicted by nobody
                torch.testing.assert_close(found[7 + offset], exact[offset - begin - 1], **CLOSE)


def test_repacked_rows_use_stored_values(tmp_path, model):
    run = run_in(tmp_path)
    for batch in batches():
        values(cached(run, model, **WHOLE), batch)
    run.data = replace(run.data, block=20, rows="one")
    other = cached(run, model, **WHOLE)
    document = whole_documents()
    expected = values(live(run, model), document)
    torch.testing.assert_close(values(other, document), expected, **CLOSE)
    assert loads(other) == 0 and len(list(run.caches.iterdir())) == 1


def test_cuts_of_the_whole_split_see_windows_over_the_split(tmp_path, model):
    run = run_in(tmp_path)
    run.data = replace(run.data, rows="chunk")
    flat = np.concatenate(some_documents())
    whole = tiny.batch([flat], [[(0, 0, 40)]])
    expected = values(live(run, model), whole)  # of slots 1 to 39
    split = tiny.split_of(some_documents())
    document = np.repeat(np.arange(4), LENGTHS)
    offset = np.concatenate([np.arange(n) for n in LENGTHS])
    teacher = cached(run, model, **WHOLE)
    for begin in (0, 5, 20):  # documents follow one another in a row
        some = slice(begin, begin + 15)
        new_row = {"input_ids": flat[some], "document": document[some], "offset": offset[some]}
        batch = tiny.Collate(split, 64, tiny.CPU)([new_row])
        torch.testing.assert_close(values(teacher, batch), expected[begin : begin + 14], **CLOSE)
    assert teacher.teacher.batches == 1


# What it refuses


class Fresh(Data):
    name = "fresh"
    fresh_each_epoch = True


def test_rows_of_another_epoch(tmp_path, model):
    run = run_in(tmp_path)
    run.data = Fresh(block=8)
    first, second = batches((2, 3))
    teacher = cached(run, model, **WHOLE)
    values(teacher, first)
    values(teacher, second)
    other = some_documents(seed=1)
    changed = tiny.batch(other, ROWS[:2], split=first.split)
    with pytest.raises(
        RunError, match="data 'fresh' trains on tokens that its documents do not have"
    ):
        values(teacher, changed)


def test_the_length_is_the_teachers_own(tmp_path, model):
    teacher = Spy(model=str(model))
    assert own_length(teacher, tiny.CPU) == teacher.architecture(tiny.CPU).max_position_embeddings
    short = SimpleNamespace(max_position_embeddings=12)

    class Short(TableTeacher):
        def architecture(self, device):
            return short

    both = Ensemble(members=[teacher, Short()])
    assert own_length(both, tiny.CPU) == 12
    unknown = CachedTeacher(teacher=TableTeacher(), context="document")
    with pytest.raises(UsageError, match="the context length of the teacher 'table'"):
        unknown.load(run_in(tmp_path))

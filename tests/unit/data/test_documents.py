"""Documents that are drawn for a step: so many, whole, packed as all are."""

import numpy as np
import pytest
from tiny import byte_tokenizer

from kdcore import Data, RunError, component
from kdcore.data.given import as_rows
from kdcore.data.rows import Documents, pack_texts
from kdcore.data.sampler import Order, StreamedRows, TrainingRows
from kdcore.data.streaming import stream_texts

TEXTS = [f"{'ab' * (n % 13)}{n}" for n in range(60)] + ["x" * 70]  # the last is longer than a row
TOKENIZER = byte_tokenizer()
BLOCK = 32


@component
class Listed(Data):
    """These texts."""

    name = "listed"
    block: int = BLOCK

    def texts(self, split):
        return TEXTS


def dataset(rows="pack", cut="split"):
    return pack_texts(Listed(rows=rows, cut=cut), "train", TOKENIZER)


def drawn(rows, process=0, processes=1, *, batch=7):
    documents = Documents(rows)
    order = Order(len(documents), batch, 3)
    return TrainingRows(lambda epoch: documents, order, process, processes)


def tokens_of(rows):
    """Every token with its document and place, sorted."""
    keys = ("document", "offset", "input_ids")
    return sorted(
        place for row in rows for place in zip(*(row[key].tolist() for key in keys), strict=True)
    )


@pytest.mark.parametrize("rows", ["pack", "one"])
def test_a_step_holds_so_many_whole_documents(rows):
    training, all_of_them = drawn(dataset(rows)), tokens_of(dataset(rows))
    for step in range(1, 12):
        taken = tokens_of(training.step(step))
        whose = {document for document, *_ in taken}
        if step != 9:  # an epoch ends in it, and a document may come again
            assert len(whose) == 7
            assert taken == [token for token in all_of_them if token[0] in whose]
        assert all(len(row["input_ids"]) <= BLOCK for row in training.step(step))


def test_an_epoch_is_every_document_once():
    training = drawn(dataset(), batch=1)
    rows = [row for step in range(1, len(TEXTS) + 1) for row in training.step(step)]
    assert tokens_of(rows) == tokens_of(dataset())
    ends = [step for step in range(1, 3 * len(TEXTS) + 1) if training.ends_epoch(step)]
    assert ends == [len(TEXTS), 2 * len(TEXTS), 3 * len(TEXTS)]


def test_a_step_is_packed_and_pieces_stay_isolated():
    rows = drawn(dataset(), batch=20).step(1)
    assert len(rows) < 20
    for row in rows:
        begins = np.flatnonzero(np.diff(row["document"])) + 1
        assert (row["position"][begins] == 0).all()


def test_steps_are_those_of_a_document_a_row_in_the_same_order():
    by_document = drawn(dataset("one", cut="right"))
    cut = dataset("one", cut="right")
    by_row = TrainingRows(lambda epoch: cut, Order(len(cut), 7, 3), 0, 1)
    for step in (1, 2, 9):
        assert tokens_of(by_document.step(step)) == tokens_of(by_row.step(step))


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_processes_share_the_rows_of_a_step(processes):
    whole = drawn(dataset())
    for step in (1, 9, 10):
        shares = [drawn(dataset(), n, processes).share_of(step) for n in range(processes)]
        rows = [row["input_ids"].tolist() for each in shares for row in each.rows]
        alone = whole.share_of(step)
        assert rows == [row["input_ids"].tolist() for row in alone.rows]
        assert {each.of for each in shares} == {len(alone.rows)}
        before = np.cumsum([0, *(len(each.rows) for each in shares)])[:-1]
        assert [each.first for each in shares] == before.tolist()


def streamed(**options):
    settings = {"batch": 7, "seed": 0, "drawn": Documents} | options
    return StreamedRows(lambda _: stream_texts(Listed(), "train", TOKENIZER, window=4), **settings)


def test_documents_of_a_stream_are_drawn_in_its_windows():
    training = streamed()
    taken = [tokens_of(training.step(step)) for step in range(1, 9)]
    assert {len({document for document, *_ in step}) for step in taken} == {7}
    assert len({place[0] for step in taken for place in step}) == 56
    later = streamed()
    later.load_state_dict(training.state_dict(8))
    assert tokens_of(later.step(9)) == tokens_of(training.step(9))


def test_rows_that_are_cut_across_documents_and_given_ones_are_refused():
    for rows in (dataset("chunk"), as_rows([{"input_ids": [1, 2, 3]}], "train")):
        with pytest.raises(RunError, match=r"set train\.batch instead"):
            Documents(rows)

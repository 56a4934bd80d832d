import numpy as np
import pytest
import torch
from given import VOCABULARY, row

from kdcore import RunError, Split
from kdcore.data.collate import Collate, micro_batches
from kdcore.data.given import GivenRows
from kdcore.data.sampler import Order, TrainingRows, random_subset, share

CPU = torch.device("cpu")
SPLIT = Split("train", "made by hand", np.array([9, 9, 9]))


def collate(*rows, vocabulary=VOCABULARY):
    return Collate(SPLIT, vocabulary, CPU)(rows)


def row_of(ids, **others):
    """One document from its beginning."""
    count = list(range(len(ids)))
    return {"input_ids": ids, "document": [0] * len(ids), "offset": count} | others


def given_rows(rows):
    return GivenRows(rows, "train", "this test")


# Order


def test_epochs_run_into_one_another_and_have_each_row_once():
    order = Order(rows=10, batch=4, seed=0)
    places = [place for step in range(1, 6) for place in order.step(step)]
    assert [epoch for epoch, _ in places] == [0] * 10 + [1] * 10
    for epoch in (0, 1):
        assert sorted(row for e, row in places if e == epoch) == list(range(10))
    one, other = ([row for e, row in places if e == epoch] for epoch in (0, 1))
    assert one != other


def test_a_batch_may_be_larger_than_an_epoch():
    places = Order(rows=3, batch=7, seed=0).step(1)
    assert [epoch for epoch, _ in places] == [0, 0, 0, 1, 1, 1, 2]


def test_order_hangs_on_seed_and_epoch_alone():
    order = Order(10, 4, seed=0)
    later = order.step(9)
    assert order.step(2) == Order(10, 4, seed=0).step(2)
    assert order.step(9) == later
    assert [place for n in (1, 2) for place in Order(10, 2, seed=0).step(n)] == order.step(1)
    assert order.step(1) != Order(10, 4, seed=1).step(1)


@pytest.mark.parametrize("count", [0, 1, 5, 8])
@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_shares_lie_side_by_side(count, processes):
    shares = [share(count, process, processes) for process in range(processes)]
    assert [n for each in shares for n in each] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_evaluated_rows_are_drawn_once_without_repeats():
    some = random_subset(100, 10, seed=0)
    assert len(set(some.tolist())) == 10
    assert (np.diff(some) > 0).all()
    assert (some == random_subset(100, 10, seed=0)).all()
    assert (some != random_subset(100, 10, seed=1)).any()
    assert random_subset(5, 10, seed=0).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_processes_take_the_rows_of_one_process(processes):
    rows = [given_rows([row_of([first + n]) for n in range(6)]) for first in (0, 10)]
    order = Order(6, 4, seed=0)
    for step in (1, 2, 3):
        taken = [
            row["input_ids"][0]
            for process in range(processes)
            for row in TrainingRows(rows.__getitem__, order, process, processes).step(step)
        ]
        assert taken == [rows[epoch][n]["input_ids"][0] for epoch, n in order.step(step)]


def test_rows_of_an_epoch_are_asked_for_once():
    asked = []

    def rows(epoch):
        asked.append(epoch)
        return given_rows([row_of([n]) for n in range(5 - epoch)])  # fresh data may lay a row fewer

    training = TrainingRows(rows, Order(5, 2, seed=0), 0, 1)
    taken = [row for step in range(1, 6) for row in training.step(step)]
    assert len(taken) == 10
    assert asked == [0, 1]


# Micro-batches


def test_rows_of_nearly_one_length_go_together():
    rows = [row_of([1] * length) for length in (3, 9, 3, 7, 8)]
    assert micro_batches(rows, 2, by_length=True) == [[1, 4], [3, 0], [2]]
    assert micro_batches(rows, 2, by_length=False) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("by_length", [True, False])
def test_without_rows_there_is_one_empty_micro_batch(by_length):
    assert micro_batches([], 2, by_length=by_length) == [[]]


# Labels: shifted once, by positions, never by ids


def test_labels_are_shifted_once():
    batch = collate(row_of([5, 6, 7, 8]))
    assert batch.labels.tolist() == [6, 7, 8, -100]
    assert batch.valid.tolist() == [0, 1, 2]


def test_a_prompt_is_not_trained_but_its_last_token_predicts_the_answer():
    batch = collate(row_of([5, 6, 7, 8, 9], labels=[-100, -100, 7, 8, 9]))
    assert batch.labels.tolist() == [-100, 7, 8, 9, -100]


def test_no_token_is_predicted_across_documents():
    batch = collate(row_of([5, 6, 7, 8, 9], document=[0, 0, 1, 1, 2], position=[0, 1, 0, 1, 0]))
    assert batch.labels.tolist() == [6, -100, 8, -100, -100]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 0]]
    assert batch.attention_mask is None


def test_pieces_of_one_document_are_isolated_too():
    batch = collate(row_of([5, 6, 7, 8], offset=[0, 1, 2, 3], position=[0, 1, 0, 1]))
    assert batch.labels.tolist() == [6, -100, 8, -100]


def test_chunked_rows_predict_across_documents():
    """Where positions go on, the data wants attention to cross, and so does the prediction."""
    batch = collate(row_of([5, 6, 7, 8], document=[0, 0, 1, 1], offset=[7, 8, 0, 1]))
    assert batch.labels.tolist() == [6, 7, 8, -100]
    assert batch.attention_mask is None


def test_padding_is_known_by_its_place_not_by_its_id():
    """Id 0 fills rows up, and is an honest token elsewhere, as where pad is eos."""
    batch = collate(row_of([0, 5, 0]), row_of([0, 0, 0, 0, 0]))
    assert batch.labels.view(2, 5).tolist() == [[5, 0, -100, -100, -100], [0, 0, 0, 0, -100]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch.document.tolist() == [[0, 0, 0, -1, -1], [0] * 5]
    assert batch.offset.tolist() == [[0, 1, 2, -1, -1], [0, 1, 2, 3, 4]]


def test_padding_of_packed_rows_is_a_piece_of_its_own():
    packed = row_of([5, 6, 7], document=[0, 0, 1], position=[0, 1, 0])
    batch = collate(packed, row_of([5, 6, 7, 8, 9, 10]))
    assert batch.attention_mask is None
    assert batch.position_ids.tolist() == [[0, 1, 0, 0, 1, 2], [0, 1, 2, 3, 4, 5]]
    assert batch.labels.view(2, 6)[0].tolist() == [6, -100, -100, -100, -100, -100]


def test_without_rows_there_is_a_batch_that_trains_nothing():
    batch = collate()
    assert batch.input_ids.shape == (1, 1)
    assert len(batch.valid) == 0
    assert batch.attention_mask is None


def test_valid_positions_count_through_the_rows():
    batch = collate(row(3, seed=1), row(5, seed=2, prompt=3))
    assert batch.valid.tolist() == [0, 1, 5 + 2, 5 + 3]
    flat = batch.input_ids.flatten()
    assert batch.labels[batch.valid].tolist() == flat[batch.valid + 1].tolist()
    assert batch.vocabulary == VOCABULARY
    assert batch.split is SPLIT


@pytest.mark.parametrize("ids", [[36, 37], [37, 36]])
def test_ids_beyond_the_shared_vocabulary_are_an_error(ids):
    """Also where they are read only: some model may have no embedding for them."""
    with pytest.raises(RunError, match=r"the token id 37, and .* share the ids below 37 only"):
        collate(row_of(ids))

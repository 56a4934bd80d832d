"""What the teacher says of a text that can be counted by hand, and that it keeps the contract."""

from types import SimpleNamespace

import pytest
import torch
from kdcore_ngram import Ngram

from kdcore.testing import make_batch


def counted(rows, **options):
    """A teacher of four ids that has counted these rows, each one document."""
    teacher = Ngram(**options)
    teacher.load(
        SimpleNamespace(
            vocabulary=4,
            rows=lambda split: [
                {"input_ids": row, "document": [n] * len(row)} for n, row in enumerate(rows)
            ],
        )
    )
    return teacher


def after(teacher, *ids):
    return teacher.read(make_batch([ids], 4))(torch.tensor([len(ids) - 1]))[0].softmax(-1)


def test_bigrams_fall_back_on_what_is_frequent():
    # After 1 there was 2 twice and 3 once; over all positions 2 twice, 3 twice, 1 once.
    teacher = counted([[1, 2, 3], [1, 2], [3, 1, 3]], order=2, strength=1.0)
    single = (torch.tensor([0.0, 1.0, 2.0, 2.0]) + 0.25) / (5 + 1)
    pair = (torch.tensor([0.0, 0.0, 2.0, 1.0]) + single) / (3 + 1)
    torch.testing.assert_close(after(teacher, 3, 1), pair)
    torch.testing.assert_close(after(teacher, 0), single)  # 0 has never been seen


def test_no_gram_crosses_the_end_of_a_document():
    teacher = counted([[1, 2], [3, 0]], order=3, strength=0.1)
    assert after(teacher, 1, 2).argmax() != 3


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_the_state_is_all_that_it_knows(order):
    teacher = counted([[1, 2, 3, 1, 2, 0], [1, 2, 2]], order=order)
    other = Ngram(order=order)
    other.load_state_dict(teacher.state_dict())
    assert after(other, 3, 1, 2).equal(after(teacher, 3, 1, 2))


def test_the_teacher_keeps_the_contract(kdcore_check):
    kdcore_check(Ngram())

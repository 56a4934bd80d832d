import pytest
import torch

from kdcore.training.micro_batch import by_probe, on_cpu


def test_on_a_cpu_it_goes_by_the_row_length():
    assert on_cpu(256, block=128) == 32
    assert on_cpu(8, block=128) == 8
    assert on_cpu(8, block=100_000) == 1


class Memory:
    """Enough for so many rows."""

    def __init__(self, rows):
        self.rows, self.asked = rows, []

    def __call__(self, rows):
        self.asked.append(rows)
        if rows > self.rows:
            raise torch.OutOfMemoryError("so many rows do not fit")


@pytest.mark.parametrize(
    ("largest", "fit", "asked"),
    [(8, 100, [8]), (8, 3, [8, 4, 2]), (7, 2, [7, 4, 2]), (5, 1, [5, 3, 2, 1]), (1, 1, [1])],
)
def test_a_probe_halves_until_it_fits(largest, fit, asked):
    memory = Memory(fit)
    assert by_probe(largest, memory) == asked[-1]
    assert memory.asked == asked


def test_a_row_that_does_not_fit_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        by_probe(8, Memory(0))


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def attempt(rows):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        by_probe(8, attempt)

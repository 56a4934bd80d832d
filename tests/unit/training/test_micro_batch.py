import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kdcore_losses import CrossEntropy

from kdcore.guard import plugin_errors
from kdcore.training.micro_batch import _attempt, _dummy_rows, _longest, cpu_default, probe


def test_on_a_cpu_it_depends_on_the_row_length():
    assert cpu_default(256, block=128) == 32
    assert cpu_default(8, block=128) == 8
    assert cpu_default(8, block=100_000) == 1


NO_MEMORY = [
    torch.OutOfMemoryError("so many rows do not fit"),
    RuntimeError("CUDA error: out of memory"),  # AcceleratorError is one, of the driver
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


class Memory:
    """Enough for so many rows."""

    def __init__(self, rows, error=NO_MEMORY[0]):
        self.rows, self.error, self.asked = rows, error, []

    def __call__(self, rows):
        self.asked.append(rows)
        if rows > self.rows:
            raise self.error


@pytest.mark.parametrize(
    ("largest", "fit", "asked"),
    [(8, 100, [8]), (8, 3, [8, 4, 2]), (7, 2, [7, 4, 2]), (5, 1, [5, 3, 2, 1]), (1, 1, [1])],
)
def test_a_probe_halves_until_it_fits(largest, fit, asked):
    memory = Memory(fit)
    assert probe(largest, memory) == asked[-1]
    assert memory.asked == asked


@pytest.mark.parametrize("error", NO_MEMORY)
def test_whoever_says_that_there_is_no_memory(error):
    assert probe(8, Memory(2, error)) == 2
    with (
        pytest.raises(type(error), match=re.escape(str(error))),
        plugin_errors(CrossEntropy(), "per_token"),
    ):
        raise error


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_a_probe_leaves_a_tenth_of_the_memory_that_the_process_may_take(share, monkeypatch):
    device, held, empty = torch.device("cuda"), [], torch.empty
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: share)
    trained = torch.nn.Linear(3, 2, device=device)
    monkeypatch.setattr(
        torch, "empty", lambda *size, **options: held.append(size[0]) or empty(0, **options)
    )
    step = SimpleNamespace(
        run=SimpleNamespace(
            device=device,
            laid=lambda split: SimpleNamespace(lengths=np.array([1, 9, 3]), some=lambda at: at),
        ),
        objective=trained,
        rollouts=None,
        rehearse=lambda rows, made_up: held.append(rows),
    )
    _attempt(step, 5)
    tenth = int(0.1 * int(share * torch.cuda.get_device_properties(device).total_memory))
    assert held == [2 * (3 * 2 + 2), tenth, [1, 2, 0, 1, 2]]


def test_a_row_that_does_not_fit_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        probe(8, Memory(0))


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def attempt(rows):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        probe(8, attempt)


@pytest.mark.parametrize("later", [{"rollouts": object()}, {"lengths": []}])
def test_rows_that_are_made_later_are_made_up_for_the_probe(later):
    """The others are the longest ones: a teacher may store what it says of their documents."""
    lengths = np.array(later.get("lengths", [1, 9, 3]))
    run = SimpleNamespace(laid=lambda split: SimpleNamespace(lengths=lengths, some=lambda at: at))
    step = SimpleNamespace(run=run, rollouts=later.get("rollouts"))
    assert _longest(step, 2) == []
    assert [len(row["input_ids"]) for row in _dummy_rows(4, 2)] == [4, 4]

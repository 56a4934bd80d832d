"""Several processes give what one gives, in order, and no more is read ahead than they need."""

import multiprocessing
import os

import pytest

from kdcore import RunError
from kdcore.data.tokenized import map_in_order

pytestmark = pytest.mark.slow

needs_fork = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="needs fork"
)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("items", [0, 1, 50])
def test_results_come_in_the_order_of_the_items(processes, items):
    factor = 3  # a closure cannot be pickled, and need not be
    assert list(map_in_order(lambda n: n * factor, range(items), processes)) == [
        3 * n for n in range(items)
    ]


@needs_fork
def test_other_processes_do_the_work():
    found = set(map_in_order(lambda _: os.getpid(), range(8), 2))
    assert os.getpid() not in found


@needs_fork
def test_items_are_read_when_they_are_needed():
    read = []

    def items():
        for n in range(100):
            read.append(n)
            yield n

    results = map_in_order(abs, items(), 2)
    next(results)
    assert len(read) < 20
    results.close()


def fails(item):
    raise ValueError(f"no {item}")


@pytest.mark.parametrize("processes", [1, 2])
def test_what_fails_is_raised_as_it_is(processes):
    with pytest.raises(ValueError, match="no 0"):
        list(map_in_order(fails, range(3), processes))


@needs_fork
def test_a_process_that_is_ended_is_reported():
    with pytest.raises(RunError, match="out of memory"):
        list(map_in_order(lambda _: os._exit(9), range(3), 2))


@needs_fork
def test_processes_end_with_their_parent():
    """Also where it is killed: whoever waits for the pipe's end waits for all who hold it."""
    read, write = os.pipe()
    parent = os.fork()
    if not parent:
        os.close(read)
        next(map_in_order(abs, iter(int, 1), 2))
        os._exit(0)  # as a kill does: nothing is cleaned up
    os.close(write)
    os.waitpid(parent, 0)
    assert os.read(read, 1) == b""

"""Batches prepared a step early are those of their step."""

import threading

import pytest

from kdcore.data.sampler import Prefetcher


@pytest.mark.parametrize("workers", [0, 1, 8])
def test_every_step_gets_its_own(workers):
    ahead = Prefetcher(lambda step: step * 10, 5, workers=workers)
    assert [ahead.get(step) for step in (1, 2, 3, 4, 5)] == [10, 20, 30, 40, 50]


def test_a_step_that_was_not_expected_is_made():
    ahead = Prefetcher(lambda step: step * 10, 9, workers=1)
    assert [ahead.get(step) for step in (1, 4, 5, 2)] == [10, 40, 50, 20]


def test_the_next_step_is_made_elsewhere_and_none_after_the_last():
    made: dict[int, str] = {}

    def make(step):
        made[step] = threading.current_thread().name
        return step

    ahead = Prefetcher(make, 2, workers=1)
    assert [ahead.get(1), ahead.get(2)] == [1, 2]
    assert made[1] == threading.current_thread().name
    assert made[2].startswith("kdcore-rows")
    assert set(made) == {1, 2}


def test_errors_while_prefetching_are_raised_in_their_step():
    def make(step):
        if step == 2:
            raise ValueError("no such row")
        return step

    ahead = Prefetcher(make, 3, workers=1)
    assert ahead.get(1) == 1
    with pytest.raises(ValueError, match="no such row"):
        ahead.get(2)


def test_the_next_step_is_made_here_before_this_one_is_used():
    made = []
    ahead = Prefetcher(lambda step: made.append(step) or step * 10, 3, workers=1, here=True)
    assert (ahead.get(1), made) == (10, [1, 2])
    assert (ahead.get(2), made) == (20, [1, 2, 3])
    assert (ahead.get(3), made) == (30, [1, 2, 3])


def test_errors_of_prefetching_in_this_thread_are_raised_in_their_step():
    def make(step):
        if step == 2:
            raise ValueError("no such row")
        return step

    ahead = Prefetcher(make, 3, workers=0, here=True)
    assert ahead.get(1) == 1
    with pytest.raises(ValueError, match="no such row"):
        ahead.get(2)

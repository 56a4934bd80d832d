import math
from types import SimpleNamespace

import pytest

from kdcore import UsageError
from kdcore.api.schedule import Schedule
from kdcore.api.train_options import TrainOptions
from kdcore.training.setup import rate_of

NAMES = (
    "constant",
    "constant_with_warmup",
    "cosine",
    "cosine_with_restarts",
    "inverse_sqrt",
    "linear",
    "polynomial",
)


def rates(steps=10, **options):
    rate = rate_of(TrainOptions(lr=2.0, **options), steps)
    return [rate(step) for step in range(1, steps + 1)]


def test_cosine_decays_over_half_a_wave():
    exact = [1 + math.cos(math.pi * done / 10) for done in range(10)]
    assert rates(schedule="cosine") == pytest.approx(exact)


def test_linear_warms_up_and_decays():
    exact = [0.0, 1.0, 2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25]
    assert rates(schedule="linear", warmup=2) == pytest.approx(exact)


def test_the_first_step_of_a_warmup_moves_nothing():
    """As docs/recipe.md and `kdcore plan` say; shipped recipes were measured with it."""
    found = rates(schedule="constant_with_warmup", warmup=4)
    assert found[:5] == [0.0, 0.5, 1.0, 1.5, 2.0]


def test_a_warmup_below_one_is_a_share():
    assert rates(schedule="linear", warmup=0.2) == rates(schedule="linear", warmup=2)


def test_the_least_rate_is_a_share_of_the_largest():
    """It is where the schedule ends, and does not lift the warmup."""
    found = rates(steps=1000, schedule="cosine", warmup=10, min_lr=0.1)
    assert found[0] == 0
    assert found[10] == pytest.approx(2.0)
    assert found[-1] == pytest.approx(0.2, rel=1e-3)
    assert min(found[10:]) >= 0.2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("warmup", [0, 3])
def test_every_schedule_is_a_function_of_the_step(name, warmup):
    options = TrainOptions(lr=2.0, schedule=name, warmup=warmup)
    rate = rate_of(options, 10)
    forward = [rate(step) for step in range(1, 11)]
    assert [rate(step) for step in range(10, 0, -1)][::-1] == forward
    assert all(0 <= each <= 2 for each in forward)
    assert max(forward) == pytest.approx(2)


def test_a_run_may_be_shorter_than_its_warmup():
    assert rates(steps=2, schedule="cosine", warmup=4) == pytest.approx([0.0, 0.5])


def test_a_schedule_that_wants_more_than_the_step_is_refused():
    options = SimpleNamespace(lr=1.0, warmup=0, min_lr=0.0, schedule="reduce_lr_on_plateau")
    with pytest.raises(UsageError, match="depends on more than the step"):
        rate_of(options, 10)


def test_weights_go_straight_from_start_to_end():
    weight = Schedule(start=1.0, end=0.0, until=0.5)
    assert [weight.at(done) for done in (0, 0.25, 0.5, 1.0)] == [1.0, 0.5, 0.0, 0.0]
    assert Schedule(start=0.0, end=2.0).at(0.25) == 0.5


def test_a_constant_rate_says_that_it_has_no_warm_up(caplog):
    rate = rate_of(TrainOptions(lr=2.0, steps=10, schedule="constant", warmup=4), 10)
    assert [rate(step) for step in (1, 2, 10)] == [2.0, 2.0, 2.0]
    assert "--set train.schedule=constant_with_warmup" in caplog.text
    caplog.clear()
    rate_of(TrainOptions(lr=2.0, steps=10, schedule="constant_with_warmup", warmup=4), 10)
    assert not caplog.text

"""What cannot be sharded is refused in a sentence."""

import pytest
from kdcore_hf import HfTeacher

from kdcore.optim import sharding_error


@pytest.mark.parametrize("option", ["quantise", "offload", "device"])
def test_a_sharded_teacher_is_not_held_in_another_way(option):
    value = {"quantise": "4bit", "offload": True, "device": "cuda:1"}[option]
    with pytest.raises(ValueError, match=f'shard = "full" and {option} exclude each other'):
        HfTeacher(model="m", shard="full", **{option: value})


def test_a_sharded_teacher_cannot_take_turns():
    assert HfTeacher(model="m").moves()
    assert not HfTeacher(model="m", shard="full").moves()


@pytest.mark.parametrize("name", ["paged_adamw_8bit", "lion", "adafactor"])
def test_optimizers_that_need_whole_weights(name):
    assert repr(name) in (sharding_error(name) or "")


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "adagrad", "nadam", "rmsprop"])
def test_optimizers_of_torch_work_on_parts(name):
    assert sharding_error(name) is None

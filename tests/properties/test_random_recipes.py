"""Recipes drawn at random run as a user runs them, and `oracle_training` judges. Every second
one is continued from a checkpoint too, to the same weights and metrics.

`python benchmarks/robustness/oracle.py N --seed S` draws N more, from the seed S on.
"""

from pathlib import Path

import pytest
import random_processes
import random_recipes
import random_runs
import random_world

pytestmark = pytest.mark.slow

BY_ONE = range(196)
BY_TWO = range(196, 200)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Where the models and texts of all cases lie."""
    folder = tmp_path_factory.mktemp("random")
    random_world.lay_out(folder)
    return folder


@pytest.fixture(autouse=True)
def here(world, monkeypatch):
    monkeypatch.chdir(world)


@pytest.fixture(scope="module")
def host(world):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        return random_runs.make_host()


@pytest.fixture(scope="module")
def by_two(world):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        cases = [random_recipes.draw(seed, processes=2) for seed in BY_TWO]
        return random_processes.run_by_two(cases, world)


@pytest.mark.parametrize("seed", BY_ONE)
def test_the_engine_and_the_oracle_agree(seed, host):
    case = random_recipes.draw(seed)
    folders = random_runs.run(case, host, continued=seed % 2 == 0)
    assert random_runs.verdict(case, *folders) in random_runs.VERDICTS


@pytest.mark.parametrize("seed", BY_TWO)
def test_two_processes_and_the_oracle_agree(seed, by_two):
    case, folders = random_recipes.draw(seed, processes=2), by_two[seed]
    assert not isinstance(folders, str), folders
    assert random_runs.verdict(case, *folders) in random_runs.VERDICTS


def test_a_seed_names_a_recipe():
    one, other = (random_recipes.draw(7).recipe for _ in range(2))
    assert one == other != random_recipes.draw(8).recipe
    assert one["student"].get("config") or Path(one["student"]["model"]).is_dir()


def test_everything_there_is_gets_drawn():
    """No part of the space is left out by a typing error in the generator."""
    text = str([random_recipes.draw(seed).recipe for seed in range(300)])
    parts = [*random_world.SHAPES, *random_recipes.OPTIONS, "ce", "lora", "prompted", "ensemble"]
    parts += ["topk", "sampled", "nll", "rho", "hardest", "entropy", "random", "dropped"]
    parts += ["'one'", "chunk", "pack", "sgd", "tokens", "document", "micro_batch", "until"]
    assert not [part for part in parts if part not in text]

"""Checkpoints of sharded students move between numbers of processes, and to whole students."""

import errno
import json
import os
import re
from pathlib import Path

import pytest
import tiny
import torch
from several import several
from sharded_runs import CE, outcome, recipe, train
from torch.distributed.checkpoint.filesystem import FileSystem
from whole_runs import flip

from kdcore.errors import RunError
from kdcore.training.checkpoints.folders import damage
from kdcore.training.step import TrainStep

pytestmark = pytest.mark.slow

EMA = f'\n[teacher]\nuse = "ema"\ndecay = 0.5\n{CE}[[loss]]\nuse = "kl"\n'
OPTIONS = {"steps": 6, "save_every": 2, "eval_every": 6, "tie_word_embeddings": "true"}
WHOLE = ("train.shard=none",)
WAYS = {  # processes of each start, and its --set
    "four-two-one": [(4, ()), (2, ()), (1, ())],
    "two-four": [(2, ()), (4, ())],
    "to-whole": [(2, ()), (2, WHOLE)],
    "from-whole": [(1, WHOLE), (2, ())],
}


class Ends(Exception):
    """In place of a process that is killed."""


def ending(rank, folder, texts, sets, after):
    """Train until this process has taken so many steps; None: to the end."""
    apply, taken = TrainStep.apply, []

    def counted(step):
        if len(taken) == after:
            raise Ends
        taken.append(None)
        apply(step)

    TrainStep.apply = counted
    try:
        train(rank, folder, texts, sets)
    except Ends:
        return len(taken)
    return len(taken)


def without_room(rank, folder, text, full):
    """Train where one process finds the disk full at step 4: what each says, and what is kept."""
    create = FileSystem.create_stream

    def refusing(disk, path, mode):
        if rank == full and mode == "wb" and "step-4" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return create(disk, path, mode)

    FileSystem.create_stream = refusing
    with pytest.raises(RunError) as error:
        train(rank, folder, [text])
    (kept,) = Path(folder, "runs").glob("*/checkpoints")
    return str(error.value), [path.name for path in kept.iterdir()]


def checkpoint(folder, step):
    (found,) = Path(folder, "runs").glob(f"*/checkpoints/step-{step}")
    return found


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    tiny.save(folder)
    return folder


@pytest.fixture(scope="module")
def text(teacher):
    return recipe(teacher, EMA, **OPTIONS)


@pytest.fixture(scope="module")
def expected(tmp_path_factory, text):
    """The weights of a run that was never interrupted, of one process."""
    folder = tmp_path_factory.mktemp("alone")
    several(1, ending, folder, [text], WHOLE, None)
    return outcome(folder)[0]


def assert_same(folder, expected):
    found, _ = outcome(folder)
    assert found.keys() == expected.keys()
    for key, weight in expected.items():
        torch.testing.assert_close(found[key], weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_a_run_moves(tmp_path, text, expected, way):
    *begins, (last, sets) = WAYS[way]
    for processes, some in begins:
        assert several(processes, ending, tmp_path, [text], some, 3) == [3] * processes
    taken = several(last, ending, tmp_path, [text], sets, None)
    # Of each start's three steps two were kept.
    assert taken == [6 - 2 * len(begins)] * last
    assert_same(tmp_path, expected)


def test_files_are_safetensors_and_json_with_checksums(tmp_path, text):
    several(2, ending, tmp_path, [text], (), 3)
    path = checkpoint(tmp_path, 2)
    names = {each.name for each in path.iterdir()}
    assert {each.rpartition(".")[2] for each in names} == {"safetensors", "json"}
    sums = json.loads((path / "manifest.json").read_text())
    assert {*sums, "manifest.json"} == names
    assert damage(path) is None
    part = next(path.glob("shard-00002*"))
    flip(part)
    assert part.name in (damage(path) or "")


def test_a_checkpoint_that_lacks_a_part_is_left_out(tmp_path, text, expected):
    several(2, ending, tmp_path, [text], (), 5)
    part = next(checkpoint(tmp_path, 4).glob("shard-00002*"))
    part.unlink()
    assert part.name in (damage(checkpoint(tmp_path, 4)) or "")
    assert several(1, ending, tmp_path, [text], (), None) == [4]  # from step 2
    assert_same(tmp_path, expected)


@pytest.mark.parametrize("full", [0, 1])
def test_a_full_disk_in_one_process_is_said_by_all(tmp_path, text, full):
    for said, kept in several(2, without_room, tmp_path, text, full):
        assert re.search(r"No space left on device at .*step-2 is kept. Make room, and", said)
        assert kept == ["step-2"]


def test_the_final_folder_is_that_of_a_whole_student(tmp_path, text):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    several(1, ending, one, [text], WHOLE, None)
    several(2, ending, two, [text], (), None)
    (whole,), (sharded,) = (list(each.glob("runs/*/final")) for each in (one, two))
    assert {p.name for p in whole.iterdir()} == {p.name for p in sharded.iterdir()}
    for name in ("config.json", "generation_config.json"):
        assert (whole / name).read_text() == (sharded / name).read_text()

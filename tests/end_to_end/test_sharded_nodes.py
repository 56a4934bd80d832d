"""A sharded student and teacher on two nodes with different numbers of processes."""

import pytest
import torch
import whole_runs
from nodes import run_on
from safetensors.torch import load_file
from several import several

from kdcore.plugin.manager import PluginManager

pytestmark = pytest.mark.slow

STUDENT, TEACHER = "micro_batch = 1", 'model = "@big"'
WHOLE = whole_runs.STAGES.replace("micro_batch = 4", STUDENT)
ALL = WHOLE.replace(STUDENT, f'{STUDENT}\nshard = "full"').replace(
    TEACHER, f'{TEACHER}, shard = "full"'
)
TEACHERS = WHOLE.replace(TEACHER, f'{TEACHER}, shard = "full"')


def made(folder, text):
    folder.mkdir()
    (folder / "r.toml").write_text(text)
    return folder


def alone(rank, folder):
    whole_runs.run(
        PluginManager(off=["panel"]), WHOLE, name=str(folder / "r.toml"), out=folder / "runs"
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The run of one process with whole models."""
    folder = made(tmp_path_factory.mktemp("nodes") / "alone", WHOLE)
    several(1, alone, folder)
    return folder


def assert_same(expected, folder):
    for stage in ("big", "small"):
        one, other = (next(each.glob(f"runs/r.{stage}-*")) for each in (expected, folder))
        weights = load_file(one / "final" / "model.safetensors")
        found = load_file(other / "final" / "model.safetensors")
        assert weights.keys() == found.keys()
        for key, weight in weights.items():
            torch.testing.assert_close(found[key], weight, rtol=0, atol=1e-5)


def test_a_run_on_a_shared_disk_loses_a_process_and_moves_to_other_nodes(tmp_path, expected):
    folder = made(tmp_path / "shared", ALL)
    harmed = run_on([folder, folder], (1, 2), "r.toml", HARM="r.big 4 2")
    assert [code for code, _ in harmed] == [1, 1], harmed
    assert "another process of the run has ended" in harmed[0][1]
    resumed = run_on([folder, folder], (2, 1), "r.toml")
    assert [code for code, _ in resumed] == [0, 0], resumed
    assert "continues after step 2 of 4" in resumed[0][1]
    assert_same(expected, folder)


def test_a_sharded_student_needs_a_shared_disk(tmp_path):
    both = [made(tmp_path / f"disk-{rank}", ALL) for rank in range(2)]
    ended = run_on(both, (1, 1), "r.toml")
    assert [code for code, _ in ended] == [1, 1], ended
    for _, said in ended:
        assert 'train.shard = "full" needs run folders on a disk that all nodes share' in said
        assert "Traceback" not in said.partition(" failed (exitcode")[0]


def test_a_sharded_teacher_does_not(tmp_path, expected):
    both = [made(tmp_path / f"disk-{rank}", TEACHERS) for rank in range(2)]
    ended = run_on(both, (1, 2), "r.toml")
    assert [code for code, _ in ended] == [0, 0], ended
    assert_same(expected, both[0])

import subprocess
import sys

import pytest

from kdcore import RunError, UsageError
from kdcore.files import move_into_place
from kdcore.runs.folder import choose_folder, compare_fingerprints, finished, locked, write_texts

NONE = frozenset()


def test_a_run_continues_in_the_newest_folder_of_its_identity(tmp_path):
    def chosen(fresh=False):
        return choose_folder(tmp_path, "rho", "1a2b3c4d", fresh=fresh).name

    assert chosen() == chosen(fresh=True) == "rho-1a2b3c4d"
    (tmp_path / "rho-1a2b3c4d").mkdir()
    assert chosen() == "rho-1a2b3c4d"
    assert chosen(fresh=True) == "rho-1a2b3c4d-2"
    (tmp_path / "rho-1a2b3c4d-2").mkdir()
    assert chosen() == "rho-1a2b3c4d-2"
    assert chosen(fresh=True) == "rho-1a2b3c4d-3"
    assert choose_folder(tmp_path, "rho", "99999999", fresh=False).name == "rho-99999999"


def test_what_finished_under_another_name_is_used(tmp_path):
    def chosen(fresh=False):
        return choose_folder(tmp_path, "mine.teacher", "1a2b3c4d", fresh=fresh).name

    (tmp_path / "other.teacher-1a2b3c4d").mkdir()
    (tmp_path / "other.teacher-1a2b3c4d5-2" / "final").mkdir(parents=True)
    assert chosen() == "mine.teacher-1a2b3c4d"
    (tmp_path / "other.teacher-1a2b3c4d-2" / "final").mkdir(parents=True)
    assert chosen() == "other.teacher-1a2b3c4d-2"
    assert chosen(fresh=True) == "mine.teacher-1a2b3c4d"
    (tmp_path / "mine.teacher-1a2b3c4d").mkdir()
    assert chosen() == "mine.teacher-1a2b3c4d"


LOCK = """
import sys
from pathlib import Path
from kdcore.runs.folder import locked
with locked(Path(sys.argv[1])):
    print("in")
"""


def lock_elsewhere(folder):
    """What another process says to locking the folder."""
    command = [sys.executable, "-c", LOCK, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_two_processes_cannot_use_one_folder(tmp_path):
    with locked(tmp_path / "run"):
        with pytest.raises(RunError, match="another process is"), locked(tmp_path / "run"):
            pass
        assert "another process is running in" in lock_elsewhere(tmp_path / "run").stderr
    assert lock_elsewhere(tmp_path / "run").stdout == "in\n"


def test_texts_are_written_once(tmp_path):
    write_texts(tmp_path, {"recipe.toml": "one"})
    write_texts(tmp_path, {"recipe.toml": "two", "env.json": "{}"})
    assert (tmp_path / "recipe.toml").read_text() == "one"
    assert (tmp_path / "env.json").read_text() == "{}"


def test_a_difference_is_refused_by_name_unless_it_is_accepted(tmp_path):
    before = {"data": "a", "versions": "torch 2.8"}
    compare_fingerprints(tmp_path, before, NONE)
    compare_fingerprints(tmp_path, before, NONE)
    after = {"data": "b", "versions": "torch 2.9"}
    with pytest.raises(UsageError, match="--accept data,versions") as caught:
        compare_fingerprints(tmp_path, after, NONE)
    assert "data: was a, is b; versions: was torch 2.8, is torch 2.9" in str(caught.value)
    with pytest.raises(UsageError, match="--accept versions"):
        compare_fingerprints(tmp_path, after, frozenset({"data"}))
    compare_fingerprints(tmp_path, after, frozenset({"data", "versions"}))
    compare_fingerprints(tmp_path, after, NONE)
    with pytest.raises(UsageError):
        compare_fingerprints(tmp_path, before, NONE)


def test_a_folder_moves_into_place_whole(tmp_path):
    for name in ("beside", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert finished(tmp_path)
    move_into_place(tmp_path / "beside", tmp_path / "final")
    assert [path.name for path in (tmp_path / "final").iterdir()] == ["beside"]
    assert not (tmp_path / "beside").exists()

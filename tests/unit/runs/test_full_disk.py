"""A full disk is told apart from other failures, however deep it was met."""

import errno
import shutil
from pathlib import Path

import pytest

from kdcore import PluginError, RunError
from kdcore.files import is_full, machine_error, write_whole
from kdcore.runs.folder import refused_by_machine


def chained(error, *, of):
    """An error that another one led to."""
    try:
        try:
            raise of
        except type(of) as cause:
            raise error from cause
    except type(error) as raised:
        return raised


def test_what_is_full():
    full = OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")
    assert is_full(full)
    assert is_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert is_full(chained(PluginError("logger 'files' raised"), of=full))
    assert is_full(chained(ValueError(), of=chained(RuntimeError(), of=full)))
    assert is_full(shutil.Error([("from", "to", str(full))]))
    assert is_full(OSError(f"{full}. Detail: [errno 28] No space left on device"))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EACCES, "Permission denied"),
        OSError("no number"),
        ValueError("os error 28"),
        RuntimeError("Connection reset (os error 104)"),
    ],
)
def test_what_is_not(error):
    assert not is_full(error)
    assert not is_full(chained(RunError("failed"), of=error))


def refused(error, folder):
    return str(refused_by_machine(machine_error(chained(PluginError("raised"), of=error)), folder))


def test_the_path_is_named(tmp_path):
    error = OSError(errno.EDQUOT, "Disk quota exceeded", "/somewhere/metrics.jsonl")
    said = refused(error, tmp_path)
    assert said.startswith(f"{tmp_path} stopped: Disk quota exceeded at /somewhere/metrics.jsonl;")
    assert "; there is no checkpoint yet" in said
    assert "Make room, and the same command resumes; --set train.save_keep=1" in said


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("EIO", "See whether that disk is well"),
        ("ESTALE", "See whether that disk is well"),
        ("EACCES", "Let this user write there"),
        ("EROFS", "name another place"),
        ("ENOTDIR", "A part of that path is a file: move it away"),
        ("EMFILE", "Allow more open files (ulimit -n 4096)"),
        ("ENOSPC", "Make room"),
        ("ENOLCK", "That file system has no flock: HF_HOME=FOLDER before the command"),
    ],
)
def test_every_refusal_has_a_way_out(tmp_path, name, way):
    said = refused(OSError(getattr(errno, name), "no", "/x/final"), tmp_path)
    assert way in said and "at /x/final" in said and "the same command resumes" in said


def test_a_home_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = str(tmp_path / ".cache" / "huggingface")
    assert "HF_HOME=FOLDER" in refused(PermissionError(errno.EACCES, "no", path), tmp_path)


def test_what_libraries_in_rust_say():
    error = RuntimeError("Error while serializing: I/O error: Stale file handle (os error 116)")
    assert machine_error(error) is error
    assert machine_error(FileNotFoundError(errno.ENOENT, "no", "x")) is None


def test_a_text_that_is_refused_leaves_nothing_half(tmp_path, monkeypatch):
    def refused(self, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "failure.txt", "why")
    assert list(tmp_path.iterdir()) == []

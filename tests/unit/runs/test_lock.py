"""One process at a time in a folder, also where the file system has no flock."""

import errno
import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest

from kdcore import RunError, UsageError
from kdcore.runs import lock
from kdcore.runs.lock import GONE, OWNER, Owner, alone_in, owner_of


@pytest.fixture(params=["no flock", "no fcntl"])
def without(request, monkeypatch):
    if request.param == "no fcntl":
        monkeypatch.setattr(lock, "fcntl", None)
        return

    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", flock)


def left_by(folder, host, process, age=0.0):
    """The file of an owner who was killed so many seconds ago."""
    path = folder / OWNER
    path.write_text(json.dumps({"host": host, "process": process, "token": "t"}))
    now = path.stat().st_mtime
    os.utime(path, (now - age, now - age))


def ended():
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        return child.pid


def test_a_file_marks_the_lock_and_is_removed_with_it(tmp_path, without):
    with alone_in(tmp_path):
        owner = json.loads((tmp_path / OWNER).read_text())
        assert (owner["host"], owner["process"]) == (socket.gethostname(), os.getpid())
        said = f"another process .*{os.getpid()}.*--fresh"
        with pytest.raises(RunError, match=said), alone_in(tmp_path):
            pass
    assert os.listdir(tmp_path) == [".lock"]
    with alone_in(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_one_that_is_just_being_written_counts(tmp_path, without, content):
    (tmp_path / OWNER).write_text(content)
    with pytest.raises(RunError), alone_in(tmp_path):
        pass


def test_a_process_that_is_gone_from_this_host_leaves_it_free(tmp_path, without):
    left_by(tmp_path, socket.gethostname(), ended())
    with alone_in(tmp_path):
        pass


@pytest.mark.parametrize("age, free", [(0.0, False), (GONE / 2, False), (GONE + 5, True)])
def test_on_another_host_the_heartbeat_tells(tmp_path, without, age, free):
    left_by(tmp_path, "elsewhere", 1, age)
    if free:
        with alone_in(tmp_path):
            pass
        return
    with pytest.raises(RunError, match="1 on elsewhere"), alone_in(tmp_path):
        pass


def test_the_owner_renews_it(tmp_path, without, monkeypatch):
    monkeypatch.setattr(lock, "RENEW", 0.001)
    with alone_in(tmp_path):
        path = tmp_path / OWNER
        os.utime(path, (1.0, 1.0))
        while path.stat().st_mtime == 1.0:
            pass


def test_an_owner_who_was_held_to_be_gone_leaves_the_next_ones_file(tmp_path, without):
    with alone_in(tmp_path):
        left_by(tmp_path, "elsewhere", 1)
    assert json.loads((tmp_path / OWNER).read_text())["host"] == "elsewhere"


def test_other_refusals_are_not_taken_for_another_process(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error"), alone_in(tmp_path):
        pass


@pytest.mark.parametrize("file", [True, False])
def test_the_next_one_waits_and_hears_once_for_whom(tmp_path, monkeypatch, file):
    if file:
        monkeypatch.setattr(lock, "fcntl", None)
    first, messages, looks = ExitStack(), [], iter(range(3))
    first.enter_context(alone_in(tmp_path))
    monkeypatch.setattr(lock, "rest", lambda: next(looks) < 2 or first.close())
    with alone_in(tmp_path, messages.append):
        assert list(looks) == []
        with pytest.raises(RunError, match="--fresh"), alone_in(tmp_path):
            pass
    (said,) = messages
    assert f"({os.getpid()} on {socket.gethostname()}" in said and str(tmp_path) in said


def test_the_owner_of_a_folder_is_known_while_it_has_it(tmp_path):
    assert owner_of(tmp_path) is None
    with alone_in(tmp_path):
        found = owner_of(tmp_path)
        assert found == Owner(os.getpid(), socket.gethostname())
    assert owner_of(tmp_path) is None
    with pytest.raises(UsageError, match="on elsewhere"):
        Owner(1, "elsewhere").end()

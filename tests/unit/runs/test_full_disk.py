"""A full disk is told apart from other failures, however deep it was met."""

import errno

import pytest

from kdcore import PluginError, RunError
from kdcore.files import is_full
from kdcore.runs.folder import full_disk


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


def test_the_path_is_named(tmp_path):
    error = OSError(errno.EDQUOT, "Disk quota exceeded", "/somewhere/metrics.jsonl")
    said = str(full_disk(chained(PluginError("raised"), of=error), tmp_path))
    assert "Disk quota exceeded at /somewhere/metrics.jsonl; there is no checkpoint yet" in said
    assert "the same command continues" in said

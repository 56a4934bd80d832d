"""Progress of ours: what a bar says, when it is shown, and that libraries' own stay off."""

import io
import logging
import os
import subprocess
import sys
from contextlib import contextmanager
from threading import Event

import pytest
import tiny
from rich.console import Console
from standin_hub import serving

from kdcore.terminal import bars
from kdcore.terminal.bars import Bar, progress
from kdcore.terminal.libraries import DownloadBar, without_bars


class Terminal(io.StringIO):
    """Takes itself for a terminal."""

    def __init__(self):
        super().__init__()
        self.shown, self.is_shown = [], Event()

    def isatty(self):
        return True


@contextmanager
def terminal():
    """Standard error is a terminal, and what takes time is shown at once.

    No fixture: pytest puts its own streams in place when the test itself begins.
    """
    stream = Terminal()
    before = bars._show

    def show(bar):
        stream.shown.append(bar)
        take_away = before(bar)
        stream.is_shown.set()
        return take_away

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", "80")
        patch.setattr(bars, "_PATIENCE", 0.0)
        patch.setattr(bars, "_show", show)
        yield stream
        assert sys.stderr is stream


def drawn(bar, width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(bar)
    return console.file.getvalue()


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("width", [30, 60, 100])
def test_a_bar_says_what_is_done_and_how_long_the_rest_takes(width):
    clock = Clock()
    bar = Bar("tokenising train texts", 2_000_000, "characters", clock=clock)
    clock.now = 10.0
    bar.advance(500_000)
    said = drawn(bar, width)
    assert len(said.splitlines()) == 1 and len(said.rstrip("\n")) <= width
    assert "0:30 left" in said and ("25 %" in said or width == 30)
    assert ("500,000 of 2.00M characters" in said) == (width == 100)


def test_a_bar_without_a_total_counts():
    clock = Clock()
    bar = Bar("reading train texts", None, "characters", clock=clock)
    clock.now = 65.0
    bar.advance(12_345)
    assert drawn(bar, 80).split() == [
        *["reading", "train", "texts", "12,345", "characters", "1:05"]
    ]


def test_bytes_are_counted_as_memory_is():
    assert "512 MiB of 1.0 GiB" in drawn(Bar("model.safetensors", 2**30, "B", 2.0**29), 100)


def test_what_takes_time_is_shown_and_taken_away():
    with terminal() as shown, progress("verifying the store", 10, "rows") as bar:
        assert shown.is_shown.wait(60)  # for the timer's own thread
        bar.advance(5)
    said = shown.getvalue()
    assert shown.shown == [bar]
    assert "verifying the store" in said and said.endswith("\r\x1b[2K\x1b[?25h\r")


@pytest.mark.parametrize("why", ["dumb", "quiet"])
def test_nothing_is_shown_without_a_terminal(monkeypatch, why):
    with terminal() as shown:
        if why == "dumb":
            monkeypatch.setenv("TERM", "dumb")
        else:
            logging.getLogger("kdcore").setLevel(logging.WARNING)
        with progress("verifying the store", 10, "rows") as bar:
            bar.advance(10)
    assert shown.getvalue() == "" and shown.shown == []


def test_nothing_is_shown_where_standard_error_is_no_terminal(monkeypatch):
    with terminal() as shown:
        monkeypatch.setattr(shown, "isatty", lambda: False)
        with progress("verifying the store"):
            pass
    assert shown.getvalue() == "" and shown.shown == []


def test_a_download_is_one_of_our_bars():
    with (
        terminal() as shown,
        DownloadBar(desc="model.safetensors", total=100, initial=10, unit="B") as theirs,
    ):
        assert shown.is_shown.wait(60)
        theirs.total = 200
        theirs.update(40)
        theirs.refresh()
        [bar] = shown.shown
        assert (bar.label, bar.total, bar.done) == ("downloading model.safetensors", 200, 50)
    assert "B/s" not in shown.getvalue()


def test_bars_of_libraries_are_off_and_then_as_they_were(monkeypatch):
    import datasets
    import huggingface_hub.utils as hub
    from transformers.utils import logging as transformers

    def on():
        return [
            not datasets.are_progress_bars_disabled(),
            not hub.are_progress_bars_disabled(),
            transformers.is_progress_bar_enabled(),
        ]

    before = on()
    with without_bars():
        assert on() == [False] * 3
    assert on() == before


_LOADING = """
import torch, kdcore.terminal.bars as bars
seen = []
class Seen(bars.Bar):
    def __post_init__(self):
        super().__post_init__()
        seen.append(self)
bars.Bar = Seen
from kdcore.models.loading import load_model
load_model("own/tiny", dtype=torch.float32)
for bar in seen:
    print(bar.label, bar.total == bar.done, bar.unit, sep="|")
"""


@pytest.mark.slow
def test_a_model_from_the_hub_is_downloaded_with_our_bars(tmp_path):
    tiny.save(tmp_path / "hub" / "models" / "own" / "tiny")
    with serving(tmp_path / "hub") as (url, _):
        about = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", _LOADING],
            env={**os.environ, **about, "HF_HUB_DISABLE_XET": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
    lines = done.stdout.splitlines()
    assert lines == ["loading own/tiny|False|", "downloading model.safetensors|True|B"]
    assert "%|" not in done.stderr

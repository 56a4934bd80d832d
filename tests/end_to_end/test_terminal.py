"""A whole run in a terminal of its own: resized while it runs, without colours, and a dumb one."""

import os
import re
import subprocess
import sys

import pytest
from terminals import Reflowing, Terminal
from whole_runs import RECIPE

pty = pytest.importorskip("pty")

FOREIGN = re.compile(r"\d%\||it/s|Map:|Generating|Loading|Fetching")


def run_in(folder, terminal, resize=(), **environment):
    """What `kdcore run` of a tiny recipe writes; the terminal is resized when a frame is there."""
    import fcntl
    import struct
    import termios

    def sized(columns, lines):
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    (folder / "r.toml").write_text(RECIPE)
    master, slave = pty.openpty()
    sized(terminal.screen.columns, terminal.screen.lines)
    bare = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    bare.pop("HF_DATASETS_DISABLE_PROGRESS_BARS", None)
    child = subprocess.Popen(
        [sys.executable, "-m", "kdcore", "run", "r.toml"],
        cwd=folder,
        env={**bare, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1", **environment},
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    waiting = list(resize)
    while child.poll() is None or _ready(master):
        if _ready(master):
            terminal.write(os.read(master, 1 << 16).decode("utf-8", "replace"))
        if waiting and any(line.startswith("╰") for line in terminal.screen.shown()):
            columns, lines = waiting.pop(0)
            sized(columns, lines)
            terminal.screen.resize(lines, columns)
    os.close(master)
    os.close(slave)
    assert child.returncode == 0 and not waiting
    assert not FOREIGN.search(terminal.getvalue())
    return terminal.getvalue()


def _ready(master):
    import select

    return bool(select.select([master], [], [], 0.05)[0])


@pytest.mark.slow
def test_a_run_leaves_whole_lines_and_a_summary(tmp_path):
    terminal = Terminal(Reflowing, 120, 40, newline_is_return=False)
    run_in(tmp_path, terminal, resize=[(60, 30), (90, 50)])
    shown = terminal.screen.shown()
    assert not re.search("[│╭╰╮╯┤]", "".join(shown))
    evaluations = [line for line in shown if re.match("step [024]/4 .* nll ", line)]
    assert len(evaluations) == 3
    assert any(re.match(r"r  4 steps, ", line) for line in shown)
    assert [line for line in shown if line][-1].startswith("runs/r-")


@pytest.mark.slow
def test_without_colours_there_are_none(tmp_path):
    said = run_in(tmp_path, Terminal(Reflowing, 80, 24, newline_is_return=False), NO_COLOR="1")
    assert "╭" in said and not re.search(r"\x1b\[[0-9;]*(3[0-9]|9[0-7])m", said)


@pytest.mark.slow
def test_a_dumb_terminal_gets_plain_lines(tmp_path):
    said = run_in(tmp_path, Terminal(Reflowing, 80, 24, newline_is_return=False), TERM="dumb")
    assert "\x1b" not in said and "╭" not in said
    assert re.search(r"r  step 4/4  evaluation  nll \d", said)

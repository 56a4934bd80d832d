"""Terminals that keep what they show as text: pyte's, and one that reflows as most do."""

import io
from contextlib import contextmanager

import pyte
import pytest


class Screen(pyte.Screen):
    """pyte's own: what is too wide is cut off, and lines leave at the top."""

    def shown(self):
        """Its lines without the blanks behind them."""
        return [line.rstrip() for line in self.display]


class Reflowing(Screen):
    """Where a narrower width breaks lines in two, and what has no room leaves at the top."""

    def resize(self, lines=None, columns=None):
        text = self.shown()[: self.cursor.y + 1]
        broken = [
            line[at : at + columns] for line in text for at in range(0, max(len(line), 1), columns)
        ]
        super().resize(lines, columns)
        self.erase_in_display(2)
        kept = broken[-lines:]
        for row, line in enumerate(kept):
            self.cursor_position(row + 1, 1)
            for letter in line:
                self.draw(letter)
        self.cursor_position(len(kept), min(len(kept[-1]) + 1, columns))


class Terminal(io.StringIO):
    """Standard error of a program that runs in such a terminal."""

    def __init__(self, kind, columns, lines, newline_is_return=True):
        super().__init__()
        self.screen = kind(columns, lines)
        if newline_is_return:  # as the system has it between a program and its terminal
            self.screen.set_mode(pyte.modes.LNM)
        self._stream = pyte.Stream(self.screen)

    def isatty(self):
        return True

    def write(self, text):
        self._stream.feed(text)
        return super().write(text)


@contextmanager
def terminal(kind=Screen, columns=80, lines=24):
    """Such a terminal as standard error, and a console on it."""
    import sys

    from rich.console import Console

    with pytest.MonkeyPatch.context() as patch:
        stream = Terminal(kind, columns, lines)
        patch.setattr(sys, "stderr", stream)
        patch.setenv("TERM", "xterm")
        console = Console(stderr=True, force_terminal=True, width=columns, height=lines)
        yield stream, console
        assert sys.stderr is stream

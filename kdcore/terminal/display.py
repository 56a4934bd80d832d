"""The live display at the bottom of the terminal: redrawn parts, with messages above."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from threading import RLock
from typing import Any, TextIO, cast

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderResult
from rich.control import Control
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.segment import ControlType, Segment, Segments

_SAID = 100  # messages kept for redrawing after a change of the terminal's size
_lock = RLock()
_current: Display | None = None


def is_watched(console: Console) -> bool:
    """Whether standard error is an interactive terminal, not a file, pipe or dumb terminal."""
    return sys.stderr.isatty() and not console.is_dumb_terminal


class Shown:
    """A part of the display, until it is closed."""

    def __init__(self, display: Display, part: RenderableType) -> None:
        self._display, self._part = display, part

    def print(self, *parts: RenderableType) -> None:
        """Print a message above the display."""
        with self._display.lock:
            self._display.console.print(*parts)

    def close(self) -> None:
        """Remove the part; the last one releases the terminal."""
        global _current
        display = self._display
        with _lock:
            # By identity: equal parts may be shown.
            display.parts = [each for each in display.parts if each is not self._part]
            if display.parts:
                display.refresh()
            elif _current is display:
                _current = None
                display.close()


def show_live(part: RenderableType, console: Console | None = None) -> Shown:
    """Show `part` at the bottom of the terminal, redrawn four times a second.

    Printed and logged text appears above. All callers share one display: further parts appear below
    the first, which learns its remaining lines from `options.max_height`. `console` is where a new
    display is shown, by default standard error.
    """
    global _current
    with _lock:
        if _current is None:
            _current = Display(console or Console(stderr=True))
        display = _current
        display.parts.append(part)
        try:
            display.show()
        except BaseException:
            Shown(display, part).close()
            raise
        return Shown(display, part)


def give_back() -> None:
    """Remove everything shown: at the end of a command, also after an interrupt."""
    global _current
    with _lock:
        display, _current = _current, None
        if display is not None:
            display.parts = []
            display.close()


def _forget() -> None:
    """A forked process writes directly: nothing redraws there, and locks may stay held forever."""
    global _current, _lock
    display, _current, _lock = _current, None, RLock()
    if display is not None:
        display.leave()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget)


class Display(Live):
    """A live display that survives a change of the terminal's size.

    Terminals differ in how they treat drawn lines when their width changes: the whole screen is
    wiped, the latest messages are printed again, and the parts are drawn below them.
    """

    def __init__(self, console: Console) -> None:
        self.parts: list[RenderableType] = []
        self._said: deque[ConsoleRenderable] = deque(maxlen=_SAID)
        self._drawn_at: tuple[int, int] | None = None
        self._handlers: list[tuple[logging.StreamHandler[Any], Any]] = []
        self._proxy: _Proxy | None = None
        super().__init__(
            get_renderable=lambda: _Foot(self.parts),
            console=console,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
            vertical_overflow="crop",
        )

    def show(self) -> None:
        """Draw, and redirect terminal output above the display."""
        if self.is_started:
            self.refresh()
            return
        handlers = handlers_of(sys.stderr)
        self.start(refresh=True)
        if isinstance(sys.stderr, FileProxy):
            sys.stderr = self._proxy = _Proxy(self, sys.stderr)
        self._handlers = [(handler, handler.setStream(sys.stderr)) for handler in handlers]

    def close(self) -> None:
        """Remove the display, and restore the streams of log handlers."""
        if self._proxy is not None and sys.stderr is self._proxy:
            sys.stderr = self._proxy.inner
        self.stop()
        for handler, stream in self._handlers:
            handler.setStream(stream)
        self._handlers, self._proxy = [], None

    def leave(self) -> None:
        """Restore all streams, without locking or drawing."""
        if self._proxy is not None and sys.stderr is self._proxy:
            sys.stderr = self._proxy.rich_proxied_file
        if self._restore_stdout is not None:
            sys.stdout = cast("TextIO", self._restore_stdout)
        for handler, stream in self._handlers:
            handler.stream = stream

    @property
    def lock(self) -> RLock:
        """Held during every write: concurrent drawing would miscount lines."""
        return self._lock

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Printed output, with the display below it; rich calls this at each print and refresh."""
        with self._lock:
            self._said.extend(each for each in renderables if not isinstance(each, Control))
            size = (self.console.width, self.console.height)
            before, self._drawn_at = self._drawn_at, size
            if before in (None, size):
                return super().process_renderables(renderables)
            return [_wiped(size[1]), Segments([*self._latest()]), self._live_render]

    def _latest(self) -> Iterator[Segment]:
        """The latest messages that fit above the display."""
        console = self.console
        foot = console.render_lines(_Foot(self.parts), console.options, pad=False)
        lines = [
            line
            for each in self._said
            for line in console.render_lines(each, console.options, pad=False)
        ]
        room = max(console.height - len(foot), 0)
        for line in lines[max(len(lines) - room, 0) :]:
            yield from line
            yield Segment.line()


class _Proxy(io.TextIOBase):
    """Standard error during a display: written text appears above it."""

    def __init__(self, display: Display, inner: Any) -> None:
        self._display, self.inner = display, inner

    @property
    def rich_proxied_file(self) -> Any:
        """The stream that rich itself writes to."""
        return self.inner.rich_proxied_file

    def write(self, text: str) -> int:
        with self._display.lock:
            return int(self.inner.write(text))

    def flush(self) -> None:
        with self._display.lock:
            self.inner.flush()

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self.inner.fileno())


def _wiped(height: int) -> Control:
    """Erases the screen line by line: clearing it at once would fill the scrollback."""
    lines: list[Any] = []
    for row in range(height):
        lines += [(ControlType.CURSOR_MOVE_TO, 0, row), (ControlType.ERASE_IN_LINE, 2)]
    return Control(*lines, ControlType.HOME)


class _Foot:
    """The parts, stacked, with room for a message above them."""

    def __init__(self, parts: Sequence[RenderableType]) -> None:
        self.parts = tuple(parts)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # The terminal echoes ^C after the last line, which would scroll without room for it.
        narrow = options.update(width=max(options.max_width - 2, 1))
        drawn = list[list[list[Segment]]]()
        left = options.size.height - max(options.size.height // 6, 1)
        for part in reversed(self.parts):
            inside = narrow.copy()
            inside.height, inside.max_height = None, left
            lines = console.render_lines(part, inside, pad=False)[: max(left, 0)]
            left -= len(lines)
            drawn.insert(0, lines)
        for line in (line for lines in drawn for line in lines):
            yield from line
            yield Segment.line()


def handlers_of(stream: TextIO) -> list[logging.StreamHandler[Any]]:
    """All log handlers, of any library, that write to the stream."""
    known = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = [
        h for logger in known if isinstance(logger, logging.Logger) for h in logger.handlers
    ]
    streaming = [h for h in handlers if isinstance(h, logging.StreamHandler)]
    # Handlers that look up their stream at each message have none of their own.
    return [h for h in streaming if vars(h).get("stream") is stream]

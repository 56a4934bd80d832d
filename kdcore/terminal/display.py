"""The live display at the foot of the terminal: parts that are redrawn, messages above them."""

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

_SAID = 100  # messages that are kept, to be said again where the terminal's size changed
_lock = RLock()
_current: Display | None = None


def is_watched(console: Console) -> bool:
    """Whether somebody looks at standard error as it changes: no file, pipe or dumb terminal."""
    return sys.stderr.isatty() and not console.is_dumb_terminal


class Shown:
    """A part of the display, until it is closed."""

    def __init__(self, display: Display, part: RenderableType) -> None:
        self._display, self._part = display, part

    def print(self, *parts: RenderableType) -> None:
        """Say something above the display, once."""
        with self._display.lock:
            self._display.console.print(*parts)

    def close(self) -> None:
        """Take the part away; with the last one the terminal is given back."""
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
    """Keep `part` at the foot of the terminal, drawn anew four times a second.

    What is printed and logged meanwhile stands above. One display is shared by all: another part
    stands below the first, which is told by `options.max_height` how many lines are left for it.
    `console`: where a new display is shown, by default standard error.
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
    """Take away whatever is shown: at the end of a command, also where something was torn off."""
    global _current
    with _lock:
        display, _current = _current, None
        if display is not None:
            display.parts = []
            display.close()


def _forget() -> None:
    """A forked process writes as before: nothing draws there, and locks may stay held for ever."""
    global _current, _lock
    display, _current, _lock = _current, None, RLock()
    if display is not None:
        display.leave()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget)


class Display(Live):
    """A live display that survives a change of the terminal's size.

    Terminals differ in what they do with drawn lines when their width changes: the whole screen is
    wiped then, the latest messages are said again, and the parts are drawn below them.
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
        """Draw, and let whatever writes to the terminal write above the display."""
        if self.is_started:
            self.refresh()
            return
        handlers = handlers_of(sys.stderr)
        self.start(refresh=True)
        if isinstance(sys.stderr, FileProxy):
            sys.stderr = self._proxy = _Proxy(self, sys.stderr)
        self._handlers = [(handler, handler.setStream(sys.stderr)) for handler in handlers]

    def close(self) -> None:
        """Take the display away and give the log handlers their stream back."""
        if self._proxy is not None and sys.stderr is self._proxy:
            sys.stderr = self._proxy.inner
        self.stop()
        for handler, stream in self._handlers:
            handler.setStream(stream)
        self._handlers, self._proxy = [], None

    def leave(self) -> None:
        """Put everybody's streams back, without a lock and without drawing."""
        if self._proxy is not None and sys.stderr is self._proxy:
            sys.stderr = self._proxy.rich_proxied_file
        if self._restore_stdout is not None:
            sys.stdout = cast("TextIO", self._restore_stdout)
        for handler, stream in self._handlers:
            handler.stream = stream

    @property
    def lock(self) -> RLock:
        """Held while anything is written: two that draw at once would miscount the lines."""
        return self._lock

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """What is printed, with the display below it; called by rich at each print and refresh."""
        with self._lock:
            self._said.extend(each for each in renderables if not isinstance(each, Control))
            size = (self.console.width, self.console.height)
            before, self._drawn_at = self._drawn_at, size
            if before in (None, size):
                return super().process_renderables(renderables)
            return [_wiped(size[1]), Segments([*self._latest()]), self._live_render]

    def _latest(self) -> Iterator[Segment]:
        """As many of the latest messages as have room above the display."""
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
    """Standard error while a display is shown: what is written stands above it."""

    def __init__(self, display: Display, inner: Any) -> None:
        self._display, self.inner = display, inner

    @property
    def rich_proxied_file(self) -> Any:
        """Where rich itself writes."""
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
    """Empty every line of the screen, one by one: clearing it at once fills the scrollback."""
    lines: list[Any] = []
    for row in range(height):
        lines += [(ControlType.CURSOR_MOVE_TO, 0, row), (ControlType.ERASE_IN_LINE, 2)]
    return Control(*lines, ControlType.HOME)


class _Foot:
    """The parts, one below the other, with room for a message above them."""

    def __init__(self, parts: Sequence[RenderableType]) -> None:
        self.parts = tuple(parts)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # The terminal echoes ^C behind the last line; without room for it that would slip down.
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
    """Every log handler, of whatever library, that writes to the stream."""
    known = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = [
        h for logger in known if isinstance(logger, logging.Logger) for h in logger.handlers
    ]
    streaming = [h for h in handlers if isinstance(h, logging.StreamHandler)]
    # A handler that looks its stream up at each message has none of its own to change.
    return [h for h in streaming if vars(h).get("stream") is stream]

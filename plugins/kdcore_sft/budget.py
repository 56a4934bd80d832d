"""Limits on one rendering of a chat template, counted as it runs.

Loop iterations, calls and operations are counted, and the size of every value is checked before it
grows further. A runaway template therefore stops soon, in the thread that renders it, and nothing
has to be killed from outside.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from time import thread_time
from typing import Any, NoReturn

from jinja2.sandbox import MAX_RANGE

from kdcore import RunError

_STEPS = 200_000  # loop iterations and operations, plus ten per character of input
_CALL = 5  # steps that a call counts for
_SECONDS = 20  # CPU time of this thread
_LOOKED_AT = 64  # steps between two checks of the clock
_SIZE = 10_000_000  # characters, plus ten times the size of the input
_IN_ALL = 30  # intermediate values may be this many times larger in sum
_ITEM = 64  # characters that an item counts for, plus its own
_NUMBER = 1_000_000  # the largest argument of a function: widths, counts, indents
_WIDTH = re.compile(r"\d{6}|%[^a-zA-Z%]*\*")  # of a format; a star reads it from the arguments


class RunsAway(RunError):
    """A template that does not terminate, or writes too much. The message names no record yet."""


class Budget:
    """Steps, time and characters for one rendering of an input of this size."""

    def __init__(self, given: int = 0) -> None:
        self._steps, self._until = _STEPS + 10 * given, thread_time() + _SECONDS
        self._most = _SIZE + 10 * given
        self._room, self._in_all = self._most, self._most * _IN_ALL

    def step(self) -> None:
        """Count one loop iteration or operation."""
        self._steps -= 1
        late = not self._steps % _LOOKED_AT and thread_time() > self._until
        if self._steps < 0 or late:
            raise RunsAway("takes too many steps")

    def write(self, text: str) -> str:
        """Count a piece of the output, and return it."""
        self._room -= len(text)
        if self._room < 0:
            self._too_long()
        return text

    def sized(self, value: Any) -> Any:
        """A value that a template made; an error if it is too large."""
        length = size(value, self._most)
        self._in_all -= length
        if length > self._most or self._in_all < 0:
            self._too_long()
        return value

    def fits(self, length: int) -> None:
        """Reject a value of this length before it is made."""
        if length > self._most:
            self._too_long()

    def call(self, name: str, value: Any, arguments: Sequence[Any]) -> None:
        """Count a function call; reject it if small arguments would make a huge value."""
        for _ in range(_CALL):
            self.step()
        if any(isinstance(each, int) and abs(each) > _NUMBER for each in arguments):
            raise RunsAway(f"calls {name or 'a function'} with a number above {_NUMBER:,}")
        if name in ("format", "format_map") and isinstance(value, str):
            self.format(value)
        elif name == "replace" and len(arguments) > 1 and isinstance(value, str):
            old, new = (len(str(each)) for each in arguments[:2])
            self.fits((len(value) // max(1, old) + 1) * new)
        elif name in _MULTIPLY:
            longest = max((size(each, self._most) for each in arguments), default=0)
            self.fits(size(value, self._most) * longest)

    def format(self, text: str) -> None:
        """Reject a format string with an excessive width."""
        if _WIDTH.search(text):
            raise RunsAway("formats with a width of six digits or more, or with one that is given")

    def _too_long(self) -> NoReturn:
        raise RunsAway(f"writes more than {self._most:,} characters")


_MULTIPLY = ("join", "indent", "wordwrap", "translate", "xmlattr")


def size(value: Any, most: int) -> int:
    """The approximate number of characters in a value, nested included, counted up to `most`."""
    total, rest = 0, [value]
    while rest and total <= most:
        each = rest.pop()
        if isinstance(each, str | range):
            total += len(each)
        elif isinstance(each, list | tuple):
            total += len(each) * _ITEM
            rest.extend(each)
        elif isinstance(each, dict):
            total += len(each) * _ITEM
            rest.extend(each)
            rest.extend(each.values())
        elif isinstance(each, int):
            total += each.bit_length() >> 3
        elif isinstance(each, Iterator):
            total += MAX_RANGE  # no range is longer than this
    return total

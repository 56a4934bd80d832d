"""Number formatting: short, and of constant width where numbers change on screen."""

from __future__ import annotations

import math
import unicodedata


def value(number: float | None) -> str:
    """A loss or score in about six characters; a dash if None."""
    if number is None:
        return "-"
    if not math.isfinite(number):
        return str(number)
    size = abs(number)
    if 0 < size < 1e-3 or size >= 1e6:
        return f"{number:.1e}"
    decimals = 4 if size < 9.99995 else 3 if size < 99.9995 else 2 if size < 999.995 else 1
    return f"{number:,.{decimals}f}" if size < 9999.95 else f"{number:,.0f}"


def count(number: float) -> str:
    """A count: 950, 12,345, 1.23M, 4.56B."""
    if not math.isfinite(number):
        return str(number)
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if abs(number) >= size:
            return f"{number / size:.2f}{letter}"
    return f"{number:,.0f}"


def duration(seconds: float | None) -> str:
    """A span of time: 0:42, 12:05, 3:04:05, 2d 03:04."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(number_of_bytes: float) -> str:
    """Bytes: 512 MiB, 12.3 GiB."""
    if number_of_bytes >= 2**30:
        return f"{number_of_bytes / 2**30:.1f} GiB"
    return f"{number_of_bytes / 2**20:.0f} MiB"


def disk_size(number_of_bytes: float) -> str:
    """Disk space: 512 bytes, 1.5 GiB."""
    for unit, letters in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number_of_bytes >= unit:
            return f"{number_of_bytes / unit:.1f} {letters}"
    return f"{number_of_bytes:g} bytes"


def percent(share: float) -> str:
    """A share: 30 %."""
    return f"{share:.0%}".replace("%", " %")


def plain(text: str) -> str:
    """One line: line breaks and tabs become spaces, other control characters are escaped."""
    return " ".join(escaped(text.replace("\r\n", "\n")).split())


def shortened(text: str, width: int) -> str:
    """One line of limited width, cut between words."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return text
    cut = set_cell_size(text, max(width - 1, 0))
    whole = cut if text[len(cut.rstrip()) :][:1] == " " else cut.rpartition(" ")[0]
    # A word longer than most of the line is cut anyway, as is text without spaces.
    return (whole if cell_len(whole) * 4 >= width else cut).rstrip(" ,;:") + "…"


def escaped(text: str) -> str:
    """The text with control characters escaped, as `\\x07`, except line breaks and tabs."""
    return "".join(c if _is_shown(c) else c.encode("unicode_escape").decode() for c in text)


def _is_shown(letter: str) -> bool:
    # The two joiners are part of some scripts and of emoji.
    wanted = letter in "\n\t\u200c\u200d" or unicodedata.category(letter) == "Zs"
    return wanted or letter.isprintable()

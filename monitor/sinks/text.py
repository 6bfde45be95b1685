"""Text that is safe and aligned on a terminal: escapes, widths, colours, a line on stderr; knows nothing of events."""

from __future__ import annotations

import contextlib
import sys
import unicodedata
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

SECOND_MS: Final = 1000
MINUTE_S: Final = 60
HOUR_S: Final = 3600
DAY_S: Final = 86400
KILO: Final = 1000
UNSAFE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that move the cursor, turn the writing direction, hide, or mean nothing."""

STYLES: Final = {
    "dim": "2",
    "bold": "1",
    "red": "31",
    "alarm": "1;31",
    "green": "32",
    "clear": "1;32",
    "yellow": "33",
    "blue": "34",
    "root": "1;36",
    "head": "2;4",
}


def wants_colour(environ: Mapping[str, str], *, terminal: bool) -> bool:
    """Whether to colour: on a terminal that can, unless NO_COLOR is set (https://no-color.org)."""
    return terminal and not environ.get("NO_COLOR") and environ.get("TERM", "dumb") != "dumb"


def styled(text: str, style: str, *, colour: bool) -> str:
    """Wrap `text` in a style, where colour is wanted and there is something to wrap."""
    if not colour or not style or not text:
        return text
    return f"\x1b[{STYLES[style]}m{text}\x1b[0m"


def safe(text: str) -> str:
    """Replace whatever could act on a terminal by its visible escape."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(char) if unicodedata.category(char) in UNSAFE else char for char in text)


def _visible(char: str) -> str:
    point = ord(char)
    named = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(char)
    if named is not None:
        return named
    return f"\\x{point:02x}" if point < 1 << 8 else f"\\u{{{point:x}}}"


def columns(text: str) -> int:
    """Columns that `text` takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(_columns(char) for char in text)


def _columns(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def fit(text: str, width: int) -> str:
    """Cut `text` to `width` columns; what is cut ends in an ellipsis."""
    if columns(text) <= width:
        return text
    kept = ""
    room = max(width, 1) - 1
    for char in text:
        room -= _columns(char)
        if room < 0:
            break
        kept += char
    return kept + "…"


def pad(text: str, width: int) -> str:
    """Fill `text` up to `width` columns."""
    return text + " " * max(0, width - columns(text))


def duration(milliseconds: float) -> str:
    """Return a span of time for people: 7 ms, 1.5 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    seconds = milliseconds / SECOND_MS
    if seconds < 1:
        return f"{milliseconds:.0f} ms"
    if seconds < MINUTE_S:
        return f"{seconds:.1f} s"
    if seconds < HOUR_S:
        return _pair(seconds, (MINUTE_S, "min"), (1, "s"))
    if seconds < DAY_S:
        return _pair(seconds, (HOUR_S, "h"), (MINUTE_S, "min"))
    return _pair(seconds, (DAY_S, "d"), (HOUR_S, "h"))


def _pair(seconds: float, big: tuple[int, str], small: tuple[int, str]) -> str:
    whole, rest = divmod(int(seconds), big[0])
    part = rest // small[0]
    return f"{whole} {big[1]} {part} {small[1]}" if part else f"{whole} {big[1]}"


def size(count: int) -> str:
    """Return a number of bytes for people: 7 B, 1.5 kB, 20.0 MB."""
    if count < KILO:
        return f"{count} B"
    amount = float(count)
    for unit in ("kB", "MB", "GB"):
        amount /= KILO
        if round(amount, 1) < KILO:
            return f"{amount:.1f} {unit}"
    return f"{amount / KILO:.1f} TB"


def say(text: str) -> None:
    """One line for the user, on stderr."""
    if sys.stderr is None:  # it was closed before we began
        return
    with contextlib.suppress(OSError):
        sys.stderr.write(f"kinwatch: {safe(text)}\n")
        sys.stderr.flush()

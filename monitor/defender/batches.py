"""Event lines as batches in the spool, for whoever wants the log in the cloud: a sink.

Owns cutting lines into chunks and joining chunks into one message. Refuses to know topics and the broker.
"""

from __future__ import annotations

import gzip
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from monitor.defender.spool import Entry, Spool

FLUSH_S: Final = 0.05
"""How long lines wait in memory before they are in the spool."""


class EventSink:
    """Takes event lines from the writer thread and puts them into the spool, in chunks of at most `chunk_bytes`."""

    def __init__(
        self, spool: Spool, chunk_bytes: int, wall: Callable[[], float], call_later: Callable[[], None]
    ) -> None:
        """`wall()`: seconds since the epoch. `call_later()`: have `flush` called after FLUSH_S, in any thread."""
        self._spool, self._chunk_bytes, self._wall, self._call_later = spool, chunk_bytes, wall, call_later
        self._lock = threading.Lock()
        self._lines: list[bytes] = []
        self._bytes = 0

    def __str__(self) -> str:
        """Name it in messages."""
        return "events topic"

    def write(self, lines: bytes) -> int:
        """Take whole lines; never loses one: what the spool gives up it counts itself."""
        with self._lock:
            first = not self._lines
            self._lines.append(lines)
            self._bytes += len(lines)
            full = self._bytes >= self._chunk_bytes
        if full:
            self.flush()
        elif first:
            self._call_later()
        return 0

    def flush(self) -> None:
        """Put what waits into the spool."""
        with self._lock:
            lines, self._lines, self._bytes = b"".join(self._lines), [], 0
            for chunk in chunks(lines, self._chunk_bytes):
                self._spool.put("events", [chunk], self._wall(), lines=chunk.count(b"\n"))

    def reopen(self) -> None:
        """Nothing is open."""

    def close(self) -> None:
        """Keep nothing in memory."""
        self.flush()


def chunks(lines: bytes, most_bytes: int) -> list[bytes]:
    """Cut whole lines into pieces of at most so many bytes; a longer line is a piece of its own."""
    found = []
    while len(lines) > most_bytes:
        cut = lines.rfind(b"\n", 0, most_bytes) + 1 or lines.index(b"\n") + 1
        found.append(lines[:cut])
        lines = lines[cut:]
    return [*found, lines] if lines else found


def joined(entries: Sequence[Entry], *, compress: bool) -> bytes:
    """One message of these chunks: JSON Lines, as in the log, gzipped if wanted."""
    lines = b"".join(entry.payload for entry in entries)
    return gzip.compress(lines, mtime=0) if compress else lines

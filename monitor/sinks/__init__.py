"""Where event lines go: the Sink protocol and the one writer thread; knows neither what a line means nor its maker."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

QUEUE_BATCHES: Final = 1024
"""Most batches waiting. The engine makes at most about a thousand a second, so this is one second of a stalled sink."""
QUEUE_BYTES: Final = 64 << 20
"""Most bytes waiting: a storm makes large batches, and a small device has little memory."""
DRAIN_S: Final = 5.0
"""How long close() waits for a slow sink. systemd's own limit for a stop is 90 s."""


class Sink(Protocol):
    """A destination of event lines. Only the writer thread calls it."""

    def write(self, lines: bytes) -> int:
        """Write whole lines; return how many of them were lost for good (0: all are out).

        OSError: the sink is of no more use (BrokenPipeError: nobody reads it).
        """

    def reopen(self) -> None:
        """Open the destination anew, after a rotation. OSError: it could not be; the old one stays in use."""

    def close(self) -> None:
        """Release the destination."""


class Fanout:
    """Hands batches of lines to every sink, in order, in a thread of its own. `put` never blocks.

    A full queue costs whole batches, counted in `dropped`; lines that a sink lost are counted there too.
    """

    def __init__(  # noqa: PLR0913 - three callbacks, two bounds
        self,
        sinks: Sequence[Sink],
        *,
        on_loss: Callable[[int], None] | None = None,
        on_trouble: Callable[[str], None] | None = None,
        on_end: Callable[[Sink], None] | None = None,
        queue_batches: int = QUEUE_BATCHES,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        """Start the writer thread, which makes every callback.

        `on_loss(count)`: lines lost since the last call, told when there is room again, so that a `lost` line about
        them has a place. `on_trouble(text)`: a failure in words, once until it is over. `on_end(sink)`: that sink is
        closed for good, because nobody reads it any more. They must not raise.
        """
        self._sinks: list[Sink] = list(sinks)
        self._on_loss = on_loss
        self._on_trouble = on_trouble
        self._on_end = on_end
        self._queue_batches = queue_batches
        self._queue_bytes = queue_bytes
        self._queue: deque[tuple[bytes, int] | None] = deque()
        self._waiting_bytes = 0
        self._dropped = 0
        self._told = 0
        self._troubled: set[int] = set()
        self._closing = False
        self._change = threading.Condition()
        self._writing = 0
        self._idle = True
        # A daemon thread: a pipe that nobody drains blocks in write(2), and must not keep the program from ending.
        self._writer = threading.Thread(target=self._run, name="sinks", daemon=True)
        self._writer.start()

    @property
    def dropped(self) -> int:
        """Lines lost so far, by a full queue or by a sink."""
        with self._change:
            return self._dropped

    def put(self, lines: bytes, count: int) -> None:
        """Queue `count` whole lines, or drop and count them when the queue is full or closed."""
        if not count:
            return
        with self._change:
            full = len(self._queue) >= self._queue_batches or self._waiting_bytes + len(lines) > self._queue_bytes
            if self._closing or (full and self._queue):
                self._dropped += count
                return
            self._queue.append((lines, count))
            self._waiting_bytes += len(lines)
            self._change.notify_all()

    def reopen(self) -> None:
        """Reopen every sink, after the lines that are already queued."""
        with self._change:
            self._queue.append(None)
            self._change.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything queued so far and later is written; False when that took too long."""
        with self._change:
            return self._change.wait_for(lambda: not self._queue and self._idle, timeout_s)

    def close(self, timeout_s: float = DRAIN_S) -> int:
        """Write what is queued, for at most `timeout_s`, close the sinks; returns `dropped`, leftovers included."""
        with self._change:
            self._closing = True
            self._change.notify_all()
        self._writer.join(timeout_s)
        with self._change:
            self._dropped += sum(item[1] for item in self._queue if item is not None)
            self._dropped += self._writing
            self._queue.clear()
            self._waiting_bytes = 0
            return self._dropped

    def _run(self) -> None:
        while True:
            with self._change:
                self._idle = True
                self._writing = 0
                self._change.notify_all()
                self._change.wait_for(lambda: bool(self._queue) or self._closing)
                if not self._queue:
                    break
                item = self._queue.popleft()
                self._idle = False
                if item is not None:
                    self._waiting_bytes -= len(item[0])
                    self._writing = item[1]
            if item is None:
                self._reopen_all()
            else:
                self._write_all(*item)
            self._tell_loss()
        for sink in self._sinks:
            with contextlib.suppress(OSError):
                sink.close()

    def _write_all(self, lines: bytes, count: int) -> None:
        if not self._sinks:
            self._count_lost(count)
        for sink in list(self._sinks):
            try:
                lost = sink.write(lines)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one sink must not stop the others
                self._count_lost(count)
                self._end(sink, error)
                continue
            if lost:
                self._count_lost(lost)
                self._say(sink, f"{sink}: lines are lost because it takes no more bytes")
            else:
                self._troubled.discard(id(sink))

    def _end(self, sink: Sink, error: Exception) -> None:
        self._sinks.remove(sink)
        if not isinstance(error, BrokenPipeError):
            self._say(sink, f"{sink}: {type(error).__name__}: {error}; nothing more is written to it")
        with contextlib.suppress(OSError):
            sink.close()
        if self._on_end is not None:
            self._on_end(sink)

    def _reopen_all(self) -> None:
        for sink in self._sinks:
            try:
                sink.reopen()
            except OSError as error:
                self._say(sink, f"{sink}: cannot be reopened ({error.strerror or error}); the old file stays in use")

    def _count_lost(self, count: int) -> None:
        with self._change:
            self._dropped += count

    def _tell_loss(self) -> None:
        with self._change:
            untold = self._dropped - self._told
            self._told = self._dropped
        if untold and self._on_loss is not None:
            self._on_loss(untold)

    def _say(self, sink: Sink, text: str) -> None:
        if id(sink) not in self._troubled and self._on_trouble is not None:
            self._troubled.add(id(sink))
            self._on_trouble(text)

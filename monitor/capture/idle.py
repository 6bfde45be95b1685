"""The capture of a run that watches nobody: no records, no counters, no privileges.

Owns nothing but the wait. Refuses watches: whoever has one needs another capture.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, ClassVar

from monitor.detect.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from monitor.capture import SlotWatch
    from monitor.watch import Watch


class IdleCapture:
    """A LiveCapture in which nothing ever happens."""

    kind: ClassVar[str] = "none"

    def __init__(self) -> None:
        self._woken = threading.Event()
        self._stopping = False

    @property
    def watches(self) -> tuple[SlotWatch, ...]:
        """Nobody."""
        return ()

    def start(self) -> None:
        """Nothing begins."""

    def apply(self, watches: Sequence[Watch]) -> None:
        """Raise ValueError for a watch."""
        if watches:
            raise ValueError("this capture watches nobody")

    def poll(self) -> bool:
        """Wait for `interrupt` (True) or `stop` (False)."""
        self._woken.wait()
        self._woken.clear()
        return not self._stopping

    def commit(self) -> None:
        """There is nothing to give back."""

    def interrupt(self) -> None:
        """Make poll() return once, from any thread."""
        self._woken.set()

    def stop(self) -> None:
        """Make poll() return False, from any thread."""
        self._stopping = True
        self._woken.set()

    def drain(self) -> None:
        """There is nothing to drain."""

    def snapshot(self, reader: int | None, mark: int) -> Snapshot:
        """No watches, no losses."""
        del reader, mark
        return Snapshot(wall_ns=time.time_ns(), boot_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME), watches=(), lost={})

    def close(self, *, keep: bool) -> None:
        """Nothing to release, nothing to keep."""
        del keep

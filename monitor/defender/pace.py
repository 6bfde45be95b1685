"""Keeps what is sent within AWS IoT Core's limits of one connection.

Owns the limits. Refuses to know clocks: it is told the time.
"""

from __future__ import annotations

from typing import Final

PUBLISHES_PER_S: Final = 100
BYTES_PER_S: Final = 512 * 1024
"""https://docs.aws.amazon.com/general/latest/gr/iot-core.html, for one connection. A broker drops what is beyond."""


class Pace:
    """Two buckets that hold what may be sent within a second."""

    def __init__(self) -> None:
        self._publishes_s = self._bytes_s = 0.0
        """When each bucket is full again."""

    def due_s(self, now_s: float, size: int) -> float:
        """When a message of `size` bytes may be sent; it is taken as sent then. Never before an earlier message."""
        due = max(now_s, self._publishes_s - 1, self._bytes_s - 1)
        self._publishes_s = max(self._publishes_s, now_s) + 1 / PUBLISHES_PER_S
        self._bytes_s = max(self._bytes_s, now_s) + size / BYTES_PER_S
        return due

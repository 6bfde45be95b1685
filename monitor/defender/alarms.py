"""Alarm and clear lines as messages of their own, one each, in the spool.

Owns how a message looks and how a storm of alarms is kept from becoming a storm of messages. Refuses to know when a
message is sent and by whom.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from monitor.defender.spool import Entry, Spool

BURST: Final = 100
"""Messages of one behavior of one watch that leave at once, however fast they come."""
PER_S: Final = 1.0
"""Messages of it a second after a burst; what comes faster is merged into the one that waits."""

ALARM: Final = b'"event":"alarm"'
"""What only an alarm line contains: a quote within a text would be escaped."""
_MARKS: Final = (ALARM, b'"event":"clear"')


class _Key(msgspec.Struct, frozen=True):
    """What belongs together: the last word about it must stay the last."""

    watch: str = ""
    behavior: str = ""


class _Bucket(msgspec.Struct):
    tokens: float
    at_s: float
    held: int = 0
    """Id of the message that waits for a token."""


class AlarmQueue:
    """Puts alarms into the spool. `put` must not be called by two threads at once."""

    def __init__(self, spool: Spool, thing: str) -> None:
        self._spool = spool
        self.identify(thing)
        self._buckets: dict[_Key, _Bucket] = {}
        self.put_lines = 0
        """Alarm and clear lines taken so far."""
        self.merged_lines = 0
        """Those of them that stand in another one's message."""

    def identify(self, thing: str) -> None:
        """Tell messages from now on as of this thing."""
        self._thing = msgspec.json.encode(thing)

    def put(self, lines: bytes, wall_s: float, steady_s: float) -> int:
        """Take the alarm and clear lines among event lines; returns how many there were.

        `wall_s`: seconds since the epoch, `steady_s`: of a clock that nobody sets.
        """
        found = alarm_lines(lines)
        ready: list[bytes] = []
        for line in found:
            key = msgspec.json.decode(line, type=_Key)
            bucket = self._buckets.setdefault(key, _Bucket(BURST, steady_s))
            bucket.tokens = min(BURST, bucket.tokens + max(0.0, steady_s - bucket.at_s) * PER_S)
            bucket.at_s = steady_s
            if bucket.held and self._spool.merge(bucket.held, line, 1):
                self.merged_lines += 1
            elif bucket.tokens >= 1:
                bucket.tokens -= 1
                bucket.held = 0
                ready.append(line)
            else:
                self._put(ready, wall_s)
                ready = []
                wait_s = (1 - bucket.tokens) / PER_S
                bucket.tokens -= 1
                bucket.held = self._spool.put("alarm", [line], wall_s, ready_s=wall_s + wait_s)
        self._put(ready, wall_s)
        self.put_lines += len(found)
        return len(found)

    def _put(self, ready: list[bytes], wall_s: float) -> None:
        if ready:
            self._spool.put("alarm", ready, wall_s)

    def message(self, entry: Entry) -> bytes:
        """Write the message: the line's own object and `thing`, `alarm_id`, `merged`?.

        `alarm_id` is the same when the message is sent again. `merged`: so many further alarms and clears of this
        behavior came too fast for messages of their own; this is the last of them.
        """
        merged = b',"merged":%d' % entry.merged if entry.merged else b""
        name = f"{self._spool.name}-{entry.id}".encode()
        return b'%s,"thing":%s,"alarm_id":"%s"%s}' % (entry.payload[:-1], self._thing, name, merged)


def alarm_lines(lines: bytes) -> list[bytes]:
    """The alarm and clear lines among event lines, in order, without their ends."""
    starts = []
    for mark in _MARKS:
        at = lines.find(mark)
        while at >= 0:
            starts.append(lines.rfind(b"\n", 0, at) + 1)
            at = lines.find(mark, at + len(mark))
    return [lines[start : lines.index(b"\n", start)] for start in sorted(starts)]

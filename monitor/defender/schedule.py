"""When a report may leave: at once on an alarm, periodically otherwise, never closer than the service allows.

Owns the arithmetic of spacing, phase and retries. Refuses to know clocks: every moment is told, in seconds of
CLOCK_BOOTTIME, which no change of the date touches. What must outlive a restart is a `Sent`.
"""

from __future__ import annotations

import zlib
from typing import Final

import msgspec

RETRY_S: Final = 1.0
"""Least wait after a report that was not accepted, where the spacing allows less; doubled by each further one."""


_MOST_DOUBLINGS: Final = 16


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """One moment on both clocks."""

    wall_s: float
    """CLOCK_REALTIME."""
    boot_s: float
    """CLOCK_BOOTTIME."""
    boot_id: str
    """Which boot that counts from (/proc/sys/kernel/random/boot_id)."""


def since(sent: Moment, now: Moment) -> float:
    """Seconds from one moment to a later one, over a reboot too.

    Within a boot the boot clock says it. Over a reboot only the date can; when that went back, nothing is known to have
    passed.
    """
    passed = now.boot_s - sent.boot_s if sent.boot_id == now.boot_id else now.wall_s - sent.wall_s
    return max(0.0, passed)


class Schedule:
    """The next report of one thing."""

    def __init__(self, thing: str, interval_s: float, spacing_s: float, sent: Moment | None, now: Moment) -> None:
        """`sent`: when the last report left, in this life or an earlier one; None: never.

        Without one the first report leaves after half an interval to one and a half, by the thing's name: a fleet that
        is switched on together spreads over a whole interval, and no report about nothing takes the slot of an alarm.
        """
        self._interval_s, self._spacing_s = interval_s, spacing_s
        self._failures = 0
        self._alarmed = self._retrying = False
        self._left_s = now.boot_s
        self._phase: float | None = None
        """Of the first report; None: it has left."""
        if sent is None:
            self._earliest_s = now.boot_s
            self._phase = phase(thing)
            self._periodic_s = now.boot_s + interval_s * (0.5 + self._phase)
        else:
            self._leave(now.boot_s - since(sent, now))

    def want(self) -> None:
        """An alarm: the next report leaves as soon as it may."""
        self._alarmed = True

    @property
    def allowed_s(self) -> float:
        """From when on the spacing allows a report."""
        return self._earliest_s

    @property
    def due_s(self) -> float:
        """When the next report is to leave."""
        return self._earliest_s if self._alarmed or self._retrying else max(self._earliest_s, self._periodic_s)

    def making(self) -> None:
        """A report is about to be made: whatever is wanted from now on may not be in it."""
        self._alarmed = self._retrying = False

    def sent(self, boot_s: float) -> None:
        """The report that was made leaves now; the period begins anew."""
        self._leave(boot_s)

    def accepted(self) -> None:
        """It arrived, be it late: nothing has to be made up for."""
        self._failures = 0
        self._retrying = False
        self._earliest_s = self._left_s + self._spacing_s

    def failed(self) -> None:
        """It was refused or nobody answered: what it said goes with the next one, as soon as that may leave."""
        wait = min(RETRY_S * 2 ** min(self._failures, _MOST_DOUBLINGS), max(self._interval_s, RETRY_S))
        self._earliest_s = max(self._earliest_s, self._left_s + wait)
        self._failures += 1
        self._retrying = True

    def change(self, interval_s: float, spacing_s: float) -> None:
        """Take new settings, from the last report on."""
        moved = interval_s - self._interval_s
        self._earliest_s += spacing_s - self._spacing_s
        self._periodic_s += moved
        self._interval_s, self._spacing_s = interval_s, spacing_s

    def identify(self, thing: str) -> None:
        """Learn the thing's name; before the first report its phase is that name's from now on."""
        if self._phase is not None:
            before, self._phase = self._phase, phase(thing)
            self._periodic_s += self._interval_s * (self._phase - before)

    def _leave(self, at_s: float) -> None:
        self._phase = None
        self._left_s = at_s
        self._earliest_s = at_s + self._spacing_s
        self._periodic_s = at_s + self._interval_s


def phase(thing: str) -> float:
    """In [0, 1), spread evenly over things and always the same for one."""
    return zlib.crc32(thing.encode()) / (1 << 32)

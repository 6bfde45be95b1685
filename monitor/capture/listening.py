"""What every capture does that hears of each fork, exec and exit from the kernel, and begins with a look at /proc.

Owns the order of the two: the kernel speaks of everybody before /proc is looked at, so that nothing falls between them,
and of kin alone afterwards; what an event says of a moment before the look is known already. Refuses to know what an
event looks like, and whence it comes.
"""

from __future__ import annotations

import abc
import os
import time
from collections import deque
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import psutil

from monitor.capture.poll import PollCapture, Seen, Told, join
from monitor.capture.procfs import Image, read_image, read_stat
from monitor.engine._native import lib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from monitor.engine import Engine
    from monitor.watch import Watch


class Timed(Protocol):
    """An event."""

    @property
    def time_ns(self) -> int:
        """CLOCK_MONOTONIC."""


E = TypeVar("E", bound=Timed)


class ListeningCapture(PollCapture, abc.ABC, Generic[E]):
    """A capture by events. What is told in `_handle` is kept in `_out`, with times of `_now_ns`."""

    def __init__(self, engine: Engine, watches: Sequence[Watch], interval_s: float = 0.1) -> None:
        """`interval_s`: from one look to the next at what has no event: moves between cgroups."""
        super().__init__(engine, watches, interval_s)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._waiting: deque[E] = deque()
        self._since_ns: dict[int, int] = {}
        """When /proc was read for kin that no fork told of; what events say of an earlier moment is known."""
        self._torn = False
        """Something was lost: mend."""
        self._next_look_s = 0.0

    @abc.abstractmethod
    def _everybody(self, *, on: bool) -> None:
        """Hear of everybody, or of kin alone."""

    @abc.abstractmethod
    def _receive(self) -> bool:
        """Queue what has come; False: nothing. What was lost is told, and mended when there is nothing more."""

    @abc.abstractmethod
    def _wait(self) -> bool:
        """Until something may have come, or the next look is due; True: interrupt() or stop() was called."""

    @abc.abstractmethod
    def _handle(self, event: E) -> None:
        """Make of it what it means for kin."""

    @abc.abstractmethod
    def _mend(self) -> bool:
        """After a loss: find what was missed. True: the engine was told of something."""

    @abc.abstractmethod
    def _adopted(self, seen: Seen, moment_ns: int) -> None:
        """It is kin by a look at /proc at that moment."""

    @abc.abstractmethod
    def _forgotten(self, pid: int) -> None:
        """The process of that number is kin no more."""

    def start(self) -> None:
        """Take in what is running. The kernel speaks already: what is made meanwhile waits."""
        self.apply(self._wanted)

    def apply(self, watches: Sequence[Watch]) -> None:
        """As of the poller, with everybody's events kept until who runs has been taken in."""
        self._everybody(on=True)
        self.drain()
        moment_ns = time.monotonic_ns()
        kin = {pid for pid, seen in self._seen.items() if seen.watches}
        self._list_all()
        super().apply(watches)
        self._settle({pid for pid in self._seen if pid not in kin}, moment_ns)
        self.drain()
        self._everybody(on=False)

    def poll(self) -> bool:
        """Wait for events until the engine was told; False after stop(), when what had come was fed."""
        while True:
            if self._stopping:
                self.drain()
                return False
            came = self._receive()
            told = self._handle_all()
            if not came and self._torn:
                told |= self._mend()
            told |= self._look_aside()
            if told:
                return True
            if not came and self._wait():
                return True

    def interrupt(self) -> None:
        """Make poll() return True once; any thread may call."""
        os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """Make poll() return False; any thread may call."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)

    def drain(self) -> None:
        """Feed what has happened until now. Not while poll() runs."""
        until_ns = time.monotonic_ns()
        came = True
        while came and (not self._waiting or self._waiting[-1].time_ns < until_ns):
            came = self._receive()
            late = bool(self._waiting) and self._waiting[-1].time_ns >= until_ns
            self._handle_all()
            if late:
                break
        if self._torn:
            self._mend()

    def close(self, *, keep: bool) -> None:
        """Nothing is kept."""
        del keep
        os.close(self._wake)

    def _was_woken(self) -> bool:
        """Whether interrupt() was called since the last time."""
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return False
        return not self._stopping

    def _resolve(self) -> None:
        """Look up again what the watches' names stand for."""
        self._rules.resolve()

    def _handle_all(self) -> bool:
        """Handle what waits; True: the engine was told of something."""
        if not self._waiting:
            return bool(self._out) and self._tell()
        offset_ns = self._boot_ns() - time.monotonic_ns()
        self._precision = 0
        self._resolve()
        while self._waiting:
            event = self._waiting.popleft()
            self._now_ns = event.time_ns + offset_ns
            self._handle(event)
        self._precision = lib.KW_APPROXIMATE
        return self._tell()

    def _kin(self, pid: int) -> Seen | None:
        seen = self._seen.get(pid)
        return seen if seen is not None and seen.watches else None

    def _list_all(self) -> None:
        """Have everybody at hand, for new watches: kin as it is known, strangers as /proc shows them."""
        found = {pid: stat for pid in psutil.pids() if (stat := read_stat(pid)) is not None and not stat.gone}
        for pid, stat in found.items():
            if self._kin(pid) is None:
                self._seen[pid] = Seen(stat)

    def _settle(self, looked_at: set[int], moment_ns: int) -> None:
        """After a look at /proc at that moment: kin in `looked_at` is as it showed; strangers are left to events."""
        for pid, seen in list(self._seen.items()):
            if not seen.watches:
                del self._seen[pid]
            elif pid in looked_at:
                self._since_ns[pid] = moment_ns
                self._adopted(seen, moment_ns)

    def _look_aside(self) -> bool:
        """Look at what has no event, every interval; True: the engine was told."""
        if not self._has_no_event():
            return False
        now_s = time.monotonic()
        if now_s < self._next_look_s:
            return False
        self._next_look_s = now_s + self._interval_s
        told = self._look_for_ends()
        if self._rules.by_cgroup:
            self._now_ns = self._boot_ns()
            for pid in psutil.pids():
                self._look_for_move(pid)
        return self._tell() or told

    def _has_no_event(self) -> bool:
        """Whether there is anything to look for."""
        return bool(self._rules.by_cgroup)

    def _look_for_ends(self) -> bool:
        """Find who has ended without an event; True: there was somebody."""
        return False

    def _look_for_move(self, pid: int) -> None:
        seen = self._kin(pid)
        fresh = self._rules.match_cgroup(pid) & ~(seen.watches if seen else 0)
        stat = read_stat(pid) if fresh else None
        if stat is None or stat.gone:
            return
        known = seen is not None
        if seen is None:
            seen = self._seen[pid] = Seen(stat)
            self._since_ns[pid] = 0
        join(seen, fresh)
        if not known:
            self._adopted(seen, 0)
        image = read_image(stat) or Image()
        self._tell_image(seen, image, Told(lib.KW_ADOPT, lib.KW_CAUSE_MOVED, fresh))

"""The netlink capture: the kernel's process connector tells of every fork, exec and exit; /proc tells the rest.

Owns what the events mean for kin: who is followed, when the last thread of a process has gone, which exec an image in
/proc belongs to. The poller's look at /proc begins it, and mends it after a loss. Refuses to know messages and their
filter (monitor/engine/native/procevents.c) and the socket (connector.py).

What it cannot know: a child made with CLONE_PARENT belongs to whom the kernel names as its parent, so one that a root
gives to its own parent is not followed; an image that was left or ended before /proc was read has no path; a process
that matched by such an image is not found. So its counts are lower bounds and say so.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections import Counter
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

import msgspec

from monitor.capture import connector
from monitor.capture.listening import ListeningCapture
from monitor.capture.poll import Seen, Told, join
from monitor.capture.procfs import Image, Stat, read_credentials, read_image, read_stat
from monitor.engine import records
from monitor.engine._native import ffi, lib
from monitor.engine.records import Lineage, ProcessId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from monitor.engine import Engine
    from monitor.watch import Watch

ROOM: Final = 1024
"""Events taken from the socket at a time."""

_LAYOUT: Final = struct.Struct("=QQIIIIII16s")  # struct kw_proc_event
_START_LATE_NS: Final = 10_000_000_000
"""A process is told of at most so long after its start: the kernel takes that time early in a fork."""


class _Event(NamedTuple):
    """struct kw_proc_event."""

    time_ns: int
    start_ticks: int
    kind: int
    pid: int
    tid: int
    other: int
    value: int
    reserved: int
    comm: bytes


class NetlinkCapture(ListeningCapture[_Event]):
    """Feeds an engine from the process connector. Raises CaptureUnavailable where the kernel does not speak."""

    kind: ClassVar[str] = "netlink"

    def __init__(self, engine: Engine, watches: Sequence[Watch], interval_s: float = 0.1) -> None:
        """`interval_s`: from one look to the next at what has no event: moves between cgroups, ended threads."""
        super().__init__(engine, watches, interval_s)
        reader = lib.kw_proc_new()
        if reader == ffi.NULL:
            raise MemoryError("no memory for the reader of the process connector")
        self._reader = ffi.gc(reader, lib.kw_proc_free)
        self._cells = ffi.new("struct kw_proc_event[]", ROOM)
        self._missing = ffi.new("uint64_t *")
        self._socket = connector.listen()
        self._named: Counter[int] = Counter()
        """How many waiting forks and execs are about a pid: it must stay followed."""
        self._execs: Counter[int] = Counter()
        self._threads: dict[int, int] = {}
        self._leader_codes: dict[int, int] = {}
        self._lingering: set[int] = set()
        """Kin whose end may come without a last event: their threads were counted by /proc, or the first has gone."""
        self._handlers = {
            lib.KW_PROC_FORK: self._on_fork,
            lib.KW_PROC_THREAD: self._on_thread,
            lib.KW_PROC_EXEC: self._on_exec,
            lib.KW_PROC_EXIT: self._on_exit,
            lib.KW_PROC_UID: self._on_change,
            lib.KW_PROC_COMM: self._on_change,
        }

    def close(self, *, keep: bool) -> None:
        """The kernel need not speak any more. Nothing is kept."""
        super().close(keep=keep)
        connector.ignore(self._socket)

    def _wait(self) -> bool:
        """Until something comes; True: interrupt() or stop() was called."""
        timeout_ms = round(self._interval_s * 1000) if self._has_no_event() else -1
        self._take(
            lib.kw_proc_wait(
                self._reader, self._socket.fileno(), self._wake, timeout_ms, self._cells, ROOM, self._missing
            )
        )
        return self._was_woken()

    def _receive(self) -> bool:
        """Queue what the socket has; False: nothing. What it lost is told, and mended when there is nothing more."""
        return self._take(lib.kw_proc_read(self._reader, self._socket.fileno(), self._cells, ROOM, self._missing))

    def _take(self, count: int) -> bool:
        if count == -errno.EAGAIN:
            return False
        if count < 0 and count != -errno.ENOBUFS:
            raise OSError(-count, os.strerror(-count))
        if self._missing[0]:
            lost = records.lost_record(time_ns=self._boot_ns(), stage=lib.KW_RING_FULL, count=int(self._missing[0]))
            self._out.append(lost)
        self._torn |= count == -errno.ENOBUFS or self._missing[0] > 0
        if count > 0:
            for fields in _LAYOUT.iter_unpack(ffi.buffer(self._cells, count * _LAYOUT.size)):
                event = _Event(*fields)
                self._waiting.append(event)
                if event.kind in {lib.KW_PROC_FORK, lib.KW_PROC_EXEC}:
                    self._named[event.pid] += 1
                if event.kind == lib.KW_PROC_EXEC:
                    self._execs[event.pid] += 1
        return True

    def _handle(self, event: _Event) -> None:
        if event.kind in {lib.KW_PROC_FORK, lib.KW_PROC_EXEC}:
            _less(self._named, event.pid)
            if event.kind == lib.KW_PROC_EXEC:
                _less(self._execs, event.pid)
        self._handlers[event.kind](event)

    def _is_old(self, event: _Event) -> bool:
        return event.time_ns < self._since_ns.get(event.pid, 0)

    def _unfollow(self, pid: int) -> None:
        if not self._named[pid]:
            del self._named[pid]
            lib.kw_proc_follow(self._reader, pid, 0)

    def _on_fork(self, event: _Event) -> None:
        maker = self._kin(event.other)
        if maker is None or self._now_ns + lib.KW_TICK_NS < maker.stat.process.start_ns:
            self._unfollow(event.pid)
            return
        process = ProcessId(event.pid, _start_ns(event, self._now_ns))
        known = self._kin(event.pid)
        if known is not None:
            if abs(known.stat.process.start_ns - process.start_ns) <= lib.KW_TICK_NS:
                return  # /proc showed it first
            self._forget(known)
            self._end(known)
        if maker.uid is None:
            credentials = read_credentials(event.other)
            maker.uid = credentials.uid if credentials else None
        child = Seen(
            Stat(
                process=process,
                comm=maker.stat.comm,
                ppid=event.other,
                session=maker.stat.session,
                gone=False,
                image=maker.stat.image,
            ),
            watches=maker.watches,
            lineage=Lineage(maker.lineage.root, maker.lineage.depth + 1) if maker.lineage else None,
            uid=maker.uid,
        )
        self._follow(child)
        self._tell_fork(child, maker)

    def _on_thread(self, event: _Event) -> None:
        if self._kin(event.pid) is not None and not self._is_old(event):
            self._threads[event.pid] += 1

    def _on_exec(self, event: _Event) -> None:
        if self._is_old(event):
            return
        seen = self._kin(event.pid)
        stat, image = self._image_of(event, kin=seen is not None)
        matched = self._rules.match(stat, image) if stat is not None and image is not None else 0
        if seen is None:
            if stat is None or not matched:
                self._unfollow(event.pid)
                return
            seen = Seen(stat)
        fresh = matched & ~seen.watches
        join(seen, fresh)
        self._follow(seen)
        # Without a look at it nobody knows its name: an exec changes it.
        seen.stat = stat if stat is not None else msgspec.structs.replace(seen.stat, comm=b"", image=None)
        if image is not None and image.credentials is not None:
            seen.uid = image.credentials.uid
        self._tell_image(seen, image or Image(), Told(lib.KW_EXEC, lib.KW_CAUSE_EXEC, fresh))

    def _image_of(self, event: _Event, *, kin: bool) -> tuple[Stat | None, Image | None]:
        """What /proc shows of the image of this exec; None: it has ended or has been left by now.

        Kin that execs twice while it is read: the second event is in the socket by the time the first is decided, but
        for the moment between the kernel's change of the image and its event.
        """
        stat = read_stat(event.pid)
        image = None
        for _ in range(2):  # a change of the image while it was read may be the end of this very exec
            if stat is None or stat.process.start_ns > self._now_ns + lib.KW_TICK_NS:
                return None, None
            image = None if stat.gone else read_image(stat)
            if image is not None or stat.gone:
                break
            stat = read_stat(event.pid)
        if kin:
            self._receive()
        if self._execs[event.pid]:
            return None, None
        return stat, image

    def _on_exit(self, event: _Event) -> None:
        seen = self._kin(event.pid)
        if seen is None:
            self._unfollow(event.pid)
            return
        if self._is_old(event):
            return
        left = self._threads[event.pid] - 1
        if event.tid == event.pid:
            self._leader_codes[event.pid] = event.value
        if left > 0:
            self._threads[event.pid] = left
            if event.tid == event.pid or event.pid in self._since_ns:
                self._lingering.add(event.pid)
            return
        status = _status(self._leader_codes.get(event.pid, event.value), event.value)
        self._forget(seen)
        self._end(seen, status)

    def _on_change(self, event: _Event) -> None:
        seen = self._kin(event.pid)
        if seen is None:
            return
        if event.kind == lib.KW_PROC_UID:
            seen.uid = event.value
        else:
            seen.stat = msgspec.structs.replace(seen.stat, comm=event.comm.partition(b"\0")[0])

    def _follow(self, seen: Seen) -> None:
        """It is kin, with one thread: a fork or an exec just told."""
        pid = seen.stat.process.pid
        self._seen[pid] = seen
        self._threads[pid] = 1
        self._since_ns.pop(pid, None)
        self._leader_codes.pop(pid, None)
        self._lingering.discard(pid)
        lib.kw_proc_follow(self._reader, pid, 1)

    def _forget(self, seen: Seen) -> None:
        """It is kin no more, for it has ended."""
        self._forgotten(seen.stat.process.pid)

    def _everybody(self, *, on: bool) -> None:
        lib.kw_proc_filter(self._reader, int(not on))

    def _settle(self, looked_at: set[int], moment_ns: int) -> None:
        super()._settle(looked_at, moment_ns)
        for gone in self._threads.keys() - self._seen.keys():
            self._forgotten(gone)

    def _adopted(self, seen: Seen, moment_ns: int) -> None:
        del moment_ns
        pid = seen.stat.process.pid
        self._threads[pid] = seen.stat.threads
        self._leader_codes.pop(pid, None)
        lib.kw_proc_follow(self._reader, pid, 1)
        if seen.stat.image is None:
            self._lingering.add(pid)

    def _forgotten(self, pid: int) -> None:
        for table in (self._seen, self._threads, self._since_ns, self._leader_codes):
            table.pop(pid, None)
        self._lingering.discard(pid)
        self._unfollow(pid)

    def _mend(self) -> bool:
        """After a loss: compare with /proc, as the poller does. True: the engine was told of processes."""
        self._torn = False
        self._everybody(on=True)
        moment_ns = time.monotonic_ns()
        told = self.look()
        self._settle(set(self._seen), moment_ns)
        self._receive()
        told |= self._handle_all()
        self._everybody(on=False)
        return told

    def _has_no_event(self) -> bool:
        return bool(self._lingering) or super()._has_no_event()

    def _look_for_ends(self) -> bool:
        gone = [self._seen[pid] for pid in self._lingering if self._is_gone(self._seen[pid])]
        if gone:
            self.drain()  # its last event, if there is one, came before /proc showed the end
        self._now_ns = self._boot_ns()
        for seen in gone:
            if self._seen.get(seen.stat.process.pid) is seen:
                self._forget(seen)
                self._end(seen)
        return bool(gone)

    @staticmethod
    def _is_gone(seen: Seen) -> bool:
        process = seen.stat.process
        stat = read_stat(process.pid)
        return stat is None or stat.gone or stat.process.start_ns > process.start_ns + lib.KW_TICK_NS


def _less(counter: Counter[int], pid: int) -> None:
    counter[pid] -= 1
    if counter[pid] <= 0:
        del counter[pid]


def _start_ns(event: _Event, told_ns: int) -> int:
    """Start of a forked process: /proc's, unless it had gone and /proc showed nobody, or the next of that number."""
    start_ns = event.start_ticks * lib.KW_TICK_NS
    if told_ns - _START_LATE_NS <= start_ns <= told_ns:
        return start_ns
    return told_ns // lib.KW_TICK_NS * lib.KW_TICK_NS


def _status(leader: int, last: int) -> int | None:
    """Wait status of a process from the exit codes of its first and its last thread; None: they do not tell.

    A group exit and a signal give all threads the same code, but for a first thread that had ended by itself before.
    A last thread that ends alone does so with 0 (pthread_exit of every C library); then the first one's code counts
    (wait_task_zombie in kernel/exit.c), unless a group exit with 0 had come after it.
    """
    return None if last == 0 and leader != 0 else last

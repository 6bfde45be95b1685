"""The poll capture: looks at /proc several times a second and tells the engine, as records, what it can infer.

Owns what /proc can know: who is there, whose child it is now, whether it runs another image than at the last look. Refuses to
guess the rest: no exit status, no time better than the look, and what lived between two looks is not counted, so its counts
are lower bounds and say so. Membership is inherited once, when a process is first seen, and never recomputed from its parent.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, ClassVar, Protocol

import msgspec
import psutil

from monitor.detect.snapshot import Snapshot, WatchSnapshot
from monitor.engine import records
from monitor.engine._native import lib

if TYPE_CHECKING:
    from monitor.config import Watch
    from monitor.engine import Engine

LOWER_BOUNDS = frozenset(
    {
        "alive", "peak", "window_peak", "spawned", "adopted", "execs", "exits", "root_starts", "root_exits", "exes"
    }
)
"""Fields of WatchSnapshot that may be more than what two looks can see."""

CLOCK_STEP_NS = 1_000_000
"""The engine is told of a new wall clock when it moved by more than this against the boot clock."""

_PF_KTHREAD = 0x00200000  # include/linux/sched.h
_NO_ID = records.NO_ID


class SlotWatch(Protocol):
    """A watch and its bit in the watch masks."""

    @property
    def slot(self) -> int:
        """In [0, KW_WATCHES)."""

    @property
    def watch(self) -> Watch:
        """What it matches."""


class _Stat(msgspec.Struct, frozen=True):
    """What one look at /proc/PID/stat tells (proc(5))."""

    pid: int
    comm: bytes
    ppid: int
    session: int
    start_ticks: int
    image: tuple[bytes, ...]
    """Where code begins and ends and where the stack began: random per exec, inherited by fork."""
    gone: bool
    """A zombie without other threads: ended, not yet collected."""


class _Seen(msgspec.Struct):
    """A process that is there, kin or not, as of the last look."""

    stat: _Stat
    watches: int = 0
    roots: int = 0
    root: tuple[int, int] = _NO_ID
    depth: int = 0
    uid: int | None = None


class _Image(msgspec.Struct, frozen=True):
    """What the process runs. None: it cannot be read."""

    exe: bytes | None
    device: int
    inode: int
    links: int
    argv: bytes | None
    script: bytes | None
    cgroup: str


class PollCapture:
    """Feeds an engine from /proc. The engine's watches are the caller's to define."""

    kind: ClassVar[str] = "poll"

    def __init__(
        self,
        engine: Engine,
        watches: Sequence[SlotWatch],
        interval_s: float = 0.1,
        boot_ns: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`interval_s`: from one look to the next."""
        self._engine = engine
        self._watches = tuple(watches)
        self._rules = _Rules(watches)
        self._interval_s = interval_s
        self._boot_ns = boot_ns
        self._wall_ns = wall_ns
        self._wall_offset_ns: int | None = None
        self._stopped = threading.Event()
        self._seen: dict[int, _Seen] = {}
        self._out: list[bytes] = []
        self._now_ns = 0

    def start(self) -> None:
        """Take in what is running; a second look finds what was being forked during the first."""
        self._look(first=True)
        self._look(first=True)

    def poll(self) -> bool:
        """Look every interval until something changed; False after stop(), when a last look was taken."""
        while not self._stopped.wait(self._interval_s):
            if self._look(first=False):
                return True
        self._look(first=False)
        return False

    def stop(self) -> None:
        """Make poll() return False; any thread may call."""
        self._stopped.set()

    def snapshot(self, reader: int | None, mark: int) -> Snapshot:
        """The counters as of the last look; all but `roots` are lower bounds."""
        watches = []
        for slot_watch in self._watches:
            counters = self._engine.counters(slot_watch.slot, reader)
            exes, missed = self._engine.exes(slot_watch.slot, mark)
            watches.append(
                WatchSnapshot(
                    name=slot_watch.watch.name,
                    roots=counters.roots,
                    alive=counters.alive,
                    peak=counters.peak,
                    spawned=counters.spawned,
                    adopted=counters.adopted,
                    execs=counters.execs,
                    exits=counters.exits,
                    root_starts=counters.root_starts,
                    root_exits=counters.root_exits,
                    window_peak=counters.window_peak,
                    exes=exes,
                    exes_missed=missed,
                )
            )
        return Snapshot(
            wall_ns=self._wall_ns(),
            boot_ns=self._boot_ns(),
            watches=tuple(watches),
            lost=self._engine.losses(),
            lower_bounds=LOWER_BOUNDS,
        )

    def close(self, *, keep: bool) -> None:
        """Nothing to release: a poller leaves nothing behind to keep."""
        del keep

    def _look(self, *, first: bool) -> bool:
        """Compare /proc with the last look. True: the engine got records of processes."""
        self._now_ns = self._boot_ns()
        self._rules.resolve()
        found = {stat.pid: stat for stat in map(_read_stat, psutil.pids()) if stat is not None}
        for pid, seen in list(self._seen.items()):
            stat = found.get(pid)
            if stat is None or stat.gone or stat.start_ticks != seen.stat.start_ticks:
                del self._seen[pid]
                self._end(seen)
            else:
                self._compare(seen, stat)
        for stat in _parents_first({pid: stat for pid, stat in found.items() if pid not in self._seen}):
            self._meet(stat, first=first)
        told = bool(self._out)
        self._follow_clock()
        self._engine.ingest(b"".join(self._out))
        self._out.clear()
        return told

    def _follow_clock(self) -> None:
        offset_ns = self._wall_ns() - self._boot_ns()
        if self._wall_offset_ns is None or abs(offset_ns - self._wall_offset_ns) > CLOCK_STEP_NS:
            self._wall_offset_ns = offset_ns
            self._out.insert(0, records.clock_record(time_ns=self._now_ns, wall_ns=offset_ns))

    def _compare(self, seen: _Seen, stat: _Stat) -> None:
        """A process that was there at the last look."""
        executed = stat.image != seen.stat.image
        seen.stat = stat
        if not executed and not (self._rules.by_cgroup & ~seen.watches):
            return
        image = _read_image(stat)
        if image is None:
            return
        fresh = self._rules.matches(stat, image) & ~seen.watches
        if not executed:
            fresh &= self._rules.by_cgroup
        self._join(seen, fresh)
        if fresh or (executed and seen.watches):
            kind, cause = (lib.KW_EXEC, lib.KW_CAUSE_EXEC) if executed else (lib.KW_ADOPT, lib.KW_CAUSE_MOVED)
            self._tell_image(seen, image, fresh, kind, cause)

    def _meet(self, stat: _Stat, *, first: bool) -> None:
        """A process that was not there at the last look; its parent, if new as well, has been met."""
        seen = _Seen(stat)
        if stat.gone and first:
            return
        parent, inferred = self._maker_of(stat)
        if parent is not None:
            seen.watches = parent.watches
            seen.root = parent.root
            seen.depth = parent.depth + 1
            seen.uid = _uid_of(stat)
        image = None if stat.gone else _read_image(stat)
        adopted = first or inferred
        if parent is not None and not adopted:
            self._tell_fork(seen, parent)
        inherited = seen.watches
        fresh = self._rules.matches(stat, image) & ~seen.watches if image is not None else 0
        self._join(seen, fresh)
        if adopted and seen.watches:
            parent_id = _id(parent.stat) if parent is not None and not inferred else _NO_ID
            self._tell_image(
                seen, image, inherited | fresh, lib.KW_ADOPT, lib.KW_CAUSE_RUNNING, parent_id, inferred=inferred
            )
        elif image is not None and (fresh or (parent is not None and stat.image != parent.stat.image)):
            self._tell_image(seen, image, fresh, lib.KW_EXEC, lib.KW_CAUSE_EXEC)
        if stat.gone:
            self._end(seen)
        else:
            self._seen[stat.pid] = seen

    def _maker_of(self, stat: _Stat) -> tuple[_Seen | None, bool]:
        """The process whose kinship it inherits: its parent, else its session's leader (a session is inherited by fork
        alone), in which case True says that those between are unknown.
        """
        parent = self._seen.get(stat.ppid)
        if parent is not None and parent.watches and parent.stat.start_ticks <= stat.start_ticks:
            return parent, False
        leader = self._seen.get(stat.session)
        if leader is not None and leader.watches and leader.stat.start_ticks <= stat.start_ticks:
            return leader, True
        return None, False

    def _join(self, seen: _Seen, fresh: int) -> None:
        """Make it a root of the watches in `fresh`."""
        if fresh:
            if not seen.watches:
                seen.root = _id(seen.stat)
                seen.uid = _uid_of(seen.stat)
            seen.watches |= fresh
            seen.roots |= fresh

    def _tell_fork(self, seen: _Seen, parent: _Seen) -> None:
        self._out.append(
            records.fork_record(
                time_ns=self._now_ns,
                watches=seen.watches,
                process=_id(seen.stat),
                parent=_id(parent.stat),
                root=seen.root,
                depth=seen.depth,
                uid=seen.uid,
                comm=seen.stat.comm,
                flags=lib.KW_APPROXIMATE,
            )
        )

    def _end(self, seen: _Seen) -> None:
        if seen.watches:
            self._out.append(
                records.exit_record(
                    time_ns=self._now_ns,
                    watches=seen.watches,
                    roots=seen.roots,
                    process=_id(seen.stat),
                    root=seen.root,
                    depth=seen.depth,
                    uid=seen.uid,
                    comm=seen.stat.comm,
                    flags=lib.KW_APPROXIMATE,
                )
            )

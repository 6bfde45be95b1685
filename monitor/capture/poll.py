"""The poll capture: looks at /proc several times a second and tells the engine, as records, what it can infer.

Owns the comparison of two looks: who is new, whose child it is, who runs another image, who has gone. Refuses to guess
the rest: no exit status, no time better than the look, and what lived between two looks is not counted, so its counts
are lower bounds and say so. Membership is inherited once, when a process is first seen, and never recomputed from its
parent.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, ClassVar

import msgspec
import psutil

from monitor.capture import SlotWatch
from monitor.capture.procfs import (
    Image,
    Rules,
    Stat,
    read_credentials,
    read_image,
    read_stat,
)
from monitor.capture.rules import define, identities, refuse_enforcement
from monitor.detect.snapshot import NETWORK, Snapshot, WatchSnapshot
from monitor.engine import records
from monitor.engine._native import lib
from monitor.engine.records import Lineage, ProcessId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from monitor.engine import Engine
    from monitor.watch import Watch

LOWER_BOUNDS = frozenset(
    ("alive", "peak", "window_peak", "spawned", "adopted", "execs", "exits", "root_starts", "root_exits", "exes")
)
"""Fields of WatchSnapshot that may be more than two looks can see."""

CLOCK_STEP_NS = 1_000_000
"""The engine is told of the wall clock again when it has moved by more than this against the boot clock."""


_ALL = (1 << lib.KW_SLOTS) - 1


class Seen(msgspec.Struct):
    """A process that is there, kin or not, as of the last look."""

    stat: Stat
    watches: int = 0
    roots: int = 0
    lineage: Lineage | None = None
    """None: not kin."""
    uid: int | None = None


class Told(msgspec.Struct, frozen=True):
    """What an image record says beside the process and its image (ebpf/event.h, struct kw_image)."""

    kind: int
    cause: int
    fresh: int
    flags: int = 0
    parent: ProcessId | None = None


class PollCapture:
    """Feeds an engine from /proc. Defines the engine's watches; leaves nothing behind."""

    kind: ClassVar[str] = "poll"

    def __init__(
        self,
        engine: Engine,
        watches: Sequence[Watch],
        interval_s: float = 0.1,
        boot_ns: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`interval_s`: from one look to the next."""
        refuse_enforcement(watches, self.kind)
        self._engine = engine
        self._wanted = tuple(watches)
        self._slots: dict[str, SlotWatch] = {}
        self._rules = Rules()
        self._interval_s = interval_s
        self._boot_ns = boot_ns
        self._wall_ns = wall_ns
        self._wall_offset_ns: int | None = None
        self._woken = threading.Event()
        self._stopping = False
        self._seen: dict[int, Seen] = {}
        self._out: list[bytes] = []
        self._now_ns = 0
        self._precision = lib.KW_APPROXIMATE

    @property
    def watches(self) -> tuple[SlotWatch, ...]:
        """Who has which slot."""
        return tuple(self._slots.values())

    def start(self) -> None:
        """Take in what is running; the second look finds what was forked during the first."""
        self.apply(self._wanted)
        self.look(running=True)
        self.look(running=True)

    def apply(self, watches: Sequence[Watch]) -> None:
        """Make these the watches: who stays keeps slot, kin and counters; others go, new ones take in what runs."""
        refuse_enforcement(watches, self.kind)
        wanted = {watch.name: watch for watch in watches}
        for name, held in list(self._slots.items()):
            watch = wanted.get(name)
            if watch is None or (watch.kind, watch.value) != (held.watch.kind, held.watch.value):
                self._withdraw(held.slot)
                del self._slots[name]
        fresh = 0
        for watch in watches:
            known = self._slots.get(watch.name)
            files = identities(watch.expect.executables or ())
            held = SlotWatch(known.slot if known else self._free_slot(), watch, files)
            self._slots[watch.name] = held
            define(self._engine, held.slot, watch, files)
            if known is None:
                self._rules.add(held)
                fresh |= 1 << held.slot
        self._now_ns = self._boot_ns()
        self._rules.resolve()
        if fresh:
            for stat in _parents_first({pid: seen.stat for pid, seen in self._seen.items()}):
                self._take_in(self._seen[stat.process.pid], fresh)
        self._tell()

    def poll(self) -> bool:
        """Look every interval until something changed; False after stop(), when a last look was taken."""
        while True:
            woken = self._woken.wait(self._interval_s)
            if self._stopping:
                self.look()
                return False
            self._woken.clear()
            if self.look() or woken:
                return True

    def commit(self) -> None:
        """Nothing is kept for a later capture."""

    def interrupt(self) -> None:
        """Make poll() return True once; any thread may call."""
        self._woken.set()

    def stop(self) -> None:
        """Make poll() return False; any thread may call."""
        self._stopping = True
        self._woken.set()

    def drain(self) -> None:
        """Look once more. Not while poll() runs."""
        self.look()

    def snapshot(self, reader: int | None, mark: int) -> Snapshot:
        """The counters as of the last look; all but `roots` are lower bounds. Nothing is known of the network."""
        return Snapshot(
            wall_ns=self._wall_ns(),
            boot_ns=self._boot_ns(),
            watches=tuple(self._watch_snapshot(held, reader, mark) for held in self.watches),
            lost=self._engine.losses(),
            lower_bounds=self._lower_bounds(),
            unknown=NETWORK,
        )

    def _lower_bounds(self) -> frozenset[str]:
        """Fields of WatchSnapshot that may be more than is known."""
        return LOWER_BOUNDS

    def close(self, *, keep: bool) -> None:
        """Nothing to release, nothing to keep."""
        del keep

    def look(self, *, running: bool = False) -> bool:
        """Compare /proc with the last look; True: the engine was told of processes.

        `running`: whoever is new was running before the watch began.
        """
        self._now_ns = self._boot_ns()
        self._rules.resolve()
        found = {pid: stat for pid in psutil.pids() if (stat := read_stat(pid)) is not None}
        for pid, seen in list(self._seen.items()):
            stat = found.get(pid)
            if stat is None or stat.gone or stat.process != seen.stat.process:
                del self._seen[pid]
                self._end(seen)
            else:
                self._compare(seen, stat)
        for stat in _parents_first({pid: stat for pid, stat in found.items() if pid not in self._seen}):
            self._meet(stat, running=running)
        return self._tell()

    def _tell(self) -> bool:
        """Hand the engine what was found; True: there was something."""
        told = bool(self._out)
        offset_ns = self._wall_ns() - self._boot_ns()
        if self._wall_offset_ns is None or abs(offset_ns - self._wall_offset_ns) > CLOCK_STEP_NS:
            self._wall_offset_ns = offset_ns
            self._out.insert(0, records.clock_record(time_ns=self._now_ns, wall_ns=offset_ns))
        self._engine.ingest(b"".join(self._out))
        self._out.clear()
        return told

    def _compare(self, seen: Seen, stat: Stat) -> None:
        """A process that was there at the last look."""
        if stat.image is None:
            stat = msgspec.structs.replace(stat, image=seen.stat.image)
        executed = stat.image != seen.stat.image
        moved = self._rules.match_cgroup(stat.process.pid) & ~seen.watches
        if not executed and not moved:
            seen.stat = stat
            return
        image = read_image(stat)
        if image is None:
            return  # changing still: the next look finds it changed again
        seen.stat = stat
        fresh = self._rules.match(stat, image) & ~seen.watches if executed else moved
        join(seen, fresh)
        if executed and seen.watches:
            self._tell_image(seen, image, Told(lib.KW_EXEC, lib.KW_CAUSE_EXEC, fresh))
        elif fresh:
            self._tell_image(seen, image, Told(lib.KW_ADOPT, lib.KW_CAUSE_MOVED, fresh))

    def _meet(self, stat: Stat, *, running: bool) -> None:
        """A process that was not there at the last look; its parent, if new as well, has been met."""
        maker, inferred = self._maker_of(stat, _ALL)
        if stat.gone and (running or maker is None):
            return
        seen = Seen(stat)
        if running or inferred:
            self._take_in(seen, _ALL)
        else:
            self._be_born(seen, maker)
        if stat.gone:
            self._end(seen)
        else:
            self._seen[stat.process.pid] = seen

    def _be_born(self, seen: Seen, maker: Seen | None) -> None:
        if maker is not None:
            _inherit(seen, maker, maker.watches)
            self._tell_fork(seen, maker)
        image = None if seen.stat.gone else read_image(seen.stat)
        if image is None:
            return
        fresh = self._rules.match(seen.stat, image) & ~seen.watches
        join(seen, fresh)
        executed = maker is not None and seen.stat.image not in {None, maker.stat.image}
        if fresh or executed:
            self._tell_image(seen, image, Told(lib.KW_EXEC, lib.KW_CAUSE_EXEC, fresh))

    def _take_in(self, seen: Seen, slots: int) -> None:
        """Adopt a process into these slots, if it belongs there."""
        maker, inferred = self._maker_of(seen.stat, slots & ~seen.watches)
        fresh = maker.watches & slots & ~seen.watches if maker is not None else 0
        if maker is not None:
            _inherit(seen, maker, fresh)
        image = read_image(seen.stat) or Image()
        if not seen.stat.gone:
            matched = self._rules.match(seen.stat, image) & slots & ~seen.watches
            join(seen, matched)
            fresh |= matched
        if fresh:
            known = maker is not None and not inferred
            self._tell_image(
                seen,
                image,
                Told(
                    lib.KW_ADOPT,
                    lib.KW_CAUSE_RUNNING,
                    fresh,
                    flags=lib.KW_INFERRED if inferred else 0,
                    parent=maker.stat.process if maker is not None and known else None,
                ),
            )

    def _maker_of(self, stat: Stat, slots: int) -> tuple[Seen | None, bool]:
        """Whose kinship the process inherits: its parent's, else its session leader's.

        A session is inherited by fork alone, so its leader is an ancestor; True says that those between are unknown.
        """
        for pid, inferred in ((stat.ppid, False), (stat.session, True)):
            maker = self._seen.get(pid)
            if maker is not None and maker.watches & slots and maker.stat.process.start_ns <= stat.process.start_ns:
                return maker, inferred
        return None, False

    def _withdraw(self, slot: int) -> None:
        """Forget a slot: its watch, its kin, its counters."""
        bit = 1 << slot
        self._rules.remove(bit)
        for seen in self._seen.values():
            seen.watches &= ~bit
            seen.roots &= ~bit
            seen.lineage = seen.lineage if seen.watches else None
        self._engine.unwatch(slot)

    def _free_slot(self) -> int:
        taken = {held.slot for held in self._slots.values()}
        return next(slot for slot in range(lib.KW_WATCHES) if slot not in taken)

    def _tell_fork(self, seen: Seen, maker: Seen) -> None:
        self._out.append(
            records.fork_record(
                time_ns=self._now_ns,
                process=seen.stat.process,
                parent=maker.stat.process,
                watches=seen.watches,
                comm=seen.stat.comm,
                lineage=seen.lineage,
                uid=seen.uid,
                flags=self._precision,
            )
        )

    def _tell_image(self, seen: Seen, image: Image, told: Told) -> None:
        flags = told.flags | self._precision
        flags |= lib.KW_DELETED if image.deleted else 0
        flags |= lib.KW_MEMFD if image.memfd else 0
        self._out.append(
            records.image_record(
                kind=told.kind,
                time_ns=self._now_ns,
                process=seen.stat.process,
                watches=seen.watches,
                roots=seen.roots,
                fresh=told.fresh,
                cause=told.cause,
                parent=told.parent,
                lineage=seen.lineage,
                ppid=seen.stat.ppid,
                credentials=image.credentials,
                comm=seen.stat.comm,
                exe=image.exe,
                inode=image.inode,
                device=image.device,
                script=image.script,
                argv=image.argv,
                cwd=image.cwd,
                flags=flags,
            )
        )

    def _end(self, seen: Seen, status: int | None = None) -> None:
        if seen.watches:
            self._out.append(
                records.exit_record(
                    time_ns=self._now_ns,
                    process=seen.stat.process,
                    watches=seen.watches,
                    roots=seen.roots,
                    comm=seen.stat.comm,
                    lineage=seen.lineage,
                    status=status,
                    uid=seen.uid,
                    flags=self._precision,
                )
            )

    def _watch_snapshot(self, held: SlotWatch, reader: int | None, mark: int) -> WatchSnapshot:
        counters = self._engine.counters(held.slot, reader)
        exes, missed = self._engine.exes(held.slot, mark)
        fields = msgspec.structs.asdict(counters) | {"enforced": None, "would_enforce": None}  # it cannot act
        return WatchSnapshot(name=held.watch.name, exes=exes, exes_missed=missed, **fields)


def _inherit(seen: Seen, maker: Seen, slots: int) -> None:
    """Make it a descendant in `slots`, of the maker's lineage."""
    if slots and seen.lineage is None and maker.lineage is not None:
        seen.lineage = Lineage(maker.lineage.root, maker.lineage.depth + 1)
        credentials = read_credentials(seen.stat.process.pid)
        seen.uid = credentials.uid if credentials else None
    seen.watches |= slots


def join(seen: Seen, fresh: int) -> None:
    """Make it a root of the watches in `fresh`."""
    if fresh and seen.lineage is None:
        seen.lineage = Lineage(seen.stat.process, 0)
    seen.watches |= fresh
    seen.roots |= fresh


def _parents_first(found: dict[int, Stat]) -> Iterator[Stat]:
    """All of them, a parent before its children."""
    met: set[int] = set()
    for stat in found.values():
        chain: list[Stat] = []
        above: Stat | None = stat
        while above is not None and above.process.pid not in met:
            met.add(above.process.pid)
            chain.append(above)
            above = found.get(above.ppid)
        yield from reversed(chain)

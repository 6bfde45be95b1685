"""The bcc capture: hooks that BCC compiled here tell of every fork, exec and exit of kin, for kernels without BTF.

Owns what its records mean for kin: which watches they belong to, which stranger's image matched none. Records come from
the kernel in the layout of the wire and go through the engine's door with kinship filled in. Refuses to know how the
program is compiled (bccsource.py), reached (bccprogram.py) and tried (bccprobe.py).

Who is followed is decided in the kernel, so every process of kin is told, whatever its parent does; counts are exact
until records or processes were lost, and lower bounds from then on. Nothing is pinned: a daemon that starts again takes
in what runs, and what began and ended in between is not seen. That a watched path leads to a file of another name from
now on is noticed with the next image that may match, not before: the kernel asks by names and files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple

from monitor.capture import bccprobe, bccsource
from monitor.capture.bccprogram import Program, Row
from monitor.capture.listening import ListeningCapture
from monitor.capture.poll import LOWER_BOUNDS, Seen, Told, join
from monitor.capture.procfs import Image, Stat, read_image, read_stat
from monitor.engine import records
from monitor.engine._native import ffi, lib
from monitor.engine.records import Credentials, Lineage, ProcessId
from monitor.errors import CaptureUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from monitor.engine import Engine
    from monitor.engine._native import CData
    from monitor.schema import Capture as CaptureTable
    from monitor.watch import Watch


class _Event(NamedTuple):
    """A record as it came."""

    time_ns: int
    record: bytes


class BccCapture(ListeningCapture[_Event]):
    """Feeds an engine from hooks that are compiled here. Raises CaptureUnavailable with the reason."""

    kind: ClassVar[str] = "bcc"

    def __init__(  # noqa: PLR0913 - what to watch, with what
        self,
        engine: Engine,
        watches: Sequence[Watch],
        settings: CaptureTable,
        *,
        ring: bool = True,
        source: bccsource.Source | None = None,
        interval_s: float = 0.1,
    ) -> None:
        """`ring`: the kernel has ring buffers. `source`: how to compile, in place of what is found here."""
        super().__init__(engine, watches, interval_s)
        self._lost = (0, 0)
        self._incomplete = False
        """Something was lost at some time: counts are lower bounds."""
        self._unmet: set[tuple[int, int]] = set()
        """While it is mended: who is in the kernel's table, and is looked at next."""
        source = source or bccsource.source(settings.btf)
        try:
            self._program = self._begin(source, settings, ring=ring)
        except CaptureUnavailable:
            if not source.remembered:
                raise
            # Not true any more, though neither kernel nor headers seem to be others.
            source = bccsource.source(settings.btf, anew=True)
            self._program = self._begin(source, settings, ring=ring)
        if not source.offsets:
            bccsource.remember(source, self._program.offsets())

    def _begin(self, source: bccsource.Source, settings: CaptureTable, *, ring: bool) -> Program:
        """Compile, attach, try out."""
        program = Program(source, ring_bytes=settings.ring_bytes, max_processes=settings.max_processes, ring=ring)
        try:
            program.attach(self._wake)
            program.everybody(on=True)
            # What comes of others while it is tried is not lost: it waits for start().
            self._waiting.extend(_Event(*pair) for pair in bccprobe.try_out(program))
        except BaseException:
            program.close()
            raise
        return program

    def followed(self) -> set[ProcessId]:
        """Whose children the kernel tells of: kin, and who is not decided about yet."""
        return set(self._program.followed())

    def kept(self) -> set[int]:
        """Pids of all that the kernel or this side has a row for, strangers that were asked about included."""
        return self._program.kept() | set(self._seen) | set(self._since_ns)

    def close(self, *, keep: bool) -> None:
        """The hooks go. Nothing is kept."""
        self._program.close()
        super().close(keep=keep)

    def _lower_bounds(self) -> frozenset[str]:
        return LOWER_BOUNDS if self._incomplete else frozenset()

    def _everybody(self, *, on: bool) -> None:
        self._want()
        self._program.everybody(on=on)

    def _want(self) -> None:
        self._program.want(self._rules.wanted(), anything=self._rules.undecided)

    def _resolve(self) -> None:
        super()._resolve()
        self._want()

    def _wait(self) -> bool:
        self._program.wait(round(self._interval_s * 1000) if self._has_no_event() else -1)
        return self._was_woken()

    def _receive(self) -> bool:
        came = self._program.receive()
        self._waiting.extend(_Event(*pair) for pair in came)
        lost = self._program.losses()
        for stage, now, before in zip((lib.KW_RING_FULL, lib.KW_TABLE_FULL), lost, self._lost, strict=True):
            if now > before:
                self._out.append(records.lost_record(time_ns=self._boot_ns(), stage=stage, count=now - before))
                self._torn = self._incomplete = True
        self._lost = lost
        return bool(came)

    def _handle(self, event: _Event) -> None:
        copy = bytearray(event.record)
        header = ffi.cast("struct kw_header *", ffi.from_buffer("uint8_t[]", copy))
        if header.kind == lib.KW_FORK:
            self._on_fork(copy, ffi.cast("struct kw_fork *", header))
        elif header.kind == lib.KW_EXEC:
            self._on_exec(copy, ffi.cast("struct kw_image *", header), event.time_ns)
        elif header.kind == lib.KW_EXIT:
            self._on_exit(copy, ffi.cast("struct kw_exit *", header))

    def _known(self, process: CData) -> Seen | None:
        """Kin, and not an earlier process of that number."""
        seen = self._kin(process.pid)
        if seen is None or seen.stat.process.start_ns // lib.KW_TICK_NS != process.start_ns // lib.KW_TICK_NS:
            return None
        return seen

    def _on_fork(self, copy: bytearray, record: CData) -> None:
        process = ProcessId(record.process.pid, record.process.start_ns)
        maker = self._known(record.parent)
        if maker is None:
            self._dismiss(process, 0)
            return
        if self._known(record.process) is not None:
            return  # /proc showed it first
        self._bury(process.pid)
        comm = ffi.string(record.comm)
        stat = Stat(
            process=process, comm=comm, ppid=record.parent.pid, session=maker.stat.session, gone=False, image=None
        )
        child = Seen(stat, watches=maker.watches, uid=record.uid)
        if maker.lineage is not None:
            child.lineage = Lineage(maker.lineage.root, maker.lineage.depth + 1)
        self._seen[process.pid] = child
        record.parent.start_ns = maker.stat.process.start_ns
        self._tell_record(copy, record, child, process.start_ns)

    def _dismiss(self, process: ProcessId, images: int) -> None:
        """It is nobody's kin; but after a loss that is not known before the kernel's table was looked at (_mend)."""
        if not self._torn and _ticks_of(process) not in self._unmet:
            self._program.dismiss(process, images)

    def _bury(self, pid: int) -> None:
        """Whoever had that number before has ended, though no record told it."""
        before = self._kin(pid)
        if before is not None:
            self._forgotten(pid)
            self._end(before)

    def _on_exec(self, copy: bytearray, record: CData, time_ns: int) -> None:
        process = ProcessId(record.process.pid, record.process.start_ns)
        seen = self._known(record.process)
        if seen is not None and time_ns < self._since_ns.get(process.pid, 0):
            return
        images, record.cause = record.cause, 0
        stat = Stat(
            process=process if seen is None else seen.stat.process,
            comm=ffi.string(record.comm),
            ppid=record.ppid,
            session=0,
            gone=False,
            image=None,
        )
        matched = self._rules.match(stat, _image(copy, record))
        if seen is None:
            if not matched:
                self._dismiss(process, images)
                return
            self._bury(process.pid)
            seen = self._seen[process.pid] = Seen(stat)
        seen.stat, seen.uid = stat, record.uid
        fresh = matched & ~seen.watches
        join(seen, fresh)
        record.fresh = fresh
        record.cause = lib.KW_CAUSE_EXEC if fresh else 0
        self._tell_record(copy, record, seen, self._now_ns)

    def _on_exit(self, copy: bytearray, record: CData) -> None:
        seen = self._known(record.process)
        if seen is None:
            return
        self._forgotten(record.process.pid)
        self._tell_record(copy, record, seen, self._now_ns)

    def _tell_record(self, copy: bytearray, record: CData, seen: Seen, time_ns: int) -> None:
        """Fill in what the kernel does not know."""
        header = record.header
        header.time_ns = time_ns
        header.watches, header.roots = seen.watches, seen.roots
        record.process.start_ns = seen.stat.process.start_ns
        if seen.lineage is not None:
            header.flags |= lib.KW_HAS_ROOT
            record.root.pid, record.root.start_ns = seen.lineage.root
            record.depth = seen.lineage.depth
        self._out.append(bytes(copy))

    def _adopted(self, seen: Seen, moment_ns: int) -> None:
        del moment_ns
        if not self._program.follow(seen.stat.process):
            self._out.append(records.lost_record(time_ns=self._now_ns, stage=lib.KW_TABLE_FULL, count=1))
            self._incomplete = True
            self._forgotten(seen.stat.process.pid)
            self._end(seen)  # nobody would tell when it does

    def _forgotten(self, pid: int) -> None:
        self._seen.pop(pid, None)
        self._since_ns.pop(pid, None)

    def _mend(self) -> bool:
        """After a loss: the kernel's table says who is followed, by whom it was made, and who is there no more."""
        self._torn = False
        before = list(self._seen.values())  # who is made from now on need not be in the table
        rows = self._program.followed()
        self._unmet = {_ticks_of(process) for process in rows}
        self._receive()
        told = self._handle_all()
        self._now_ns = self._boot_ns()
        self._rules.resolve()
        there, self._unmet = self._unmet, set()
        for seen in before:
            pid = seen.stat.process.pid
            if self._seen.get(pid) is seen and _ticks_of(seen.stat.process) not in there:
                self._forgotten(pid)
                self._end(seen)
        for process, row in sorted(rows.items(), key=lambda pair: pair[0].start_ns):
            known = self._kin(process.pid)
            if known is None or _ticks_of(known.stat.process) != _ticks_of(process):
                self._find(process, row)
        return self._tell() or told

    def _find(self, process: ProcessId, row: Row) -> None:
        """Whose is it? It is followed, and no record of it came."""
        stat = read_stat(process.pid)
        if stat is None or _ticks_of(stat.process) != _ticks_of(process):
            return  # it has ended since
        self._bury(process.pid)
        seen = Seen(stat)
        maker = self._kin(row.parent_pid)
        if maker is not None and _ticks_of(maker.stat.process) == _ticks_of(
            ProcessId(row.parent_pid, row.parent_start_ns)
        ):
            seen.watches, seen.uid = maker.watches, maker.uid
            if maker.lineage is not None:
                seen.lineage = Lineage(maker.lineage.root, maker.lineage.depth + 1)
            self._tell_fork(seen, maker)
        image = read_image(stat) if row.images else None
        fresh = self._rules.match(stat, image) & ~seen.watches if image is not None else 0
        if not seen.watches and not fresh:
            self._program.dismiss(process, row.images)
            return
        join(seen, fresh)
        self._seen[process.pid] = seen
        if image is not None:
            self._tell_image(seen, image, Told(lib.KW_EXEC, lib.KW_CAUSE_EXEC, fresh))


def _ticks_of(process: ProcessId) -> tuple[int, int]:
    """What a process is known by where one side has its start in ticks only."""
    return process.pid, process.start_ns // lib.KW_TICK_NS


def _image(copy: bytearray, record: CData) -> Image:
    """The record as a look at /proc would have shown it."""

    def piece(text: CData) -> bytes | None:
        return bytes(copy[text.offset : text.offset + text.length]) if text.length else None

    arguments = piece(record.argv)
    return Image(
        exe=piece(record.exe),
        device=record.device,
        inode=record.inode,
        deleted=bool(record.header.flags & lib.KW_DELETED),
        argv=None if arguments is None else tuple(arguments.removesuffix(b"\0").split(b"\0")),
        script=piece(record.script),
        cwd=piece(record.cwd),
        credentials=Credentials(record.uid, record.gid),
    )

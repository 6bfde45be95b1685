"""The Python face of the engine: one object, bytes in, bytes out.

Owns the engine's memory and the translation of its failures. Refuses to know what a record or a line says (records.py
and lines.py do), captures, sinks and clocks.

Records go in through `Engine.ingest`, lines come out of `Engine.take`; nothing here runs per event. All methods may be
called from any thread; long calls release the GIL.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Sequence  # noqa: TC003 - msgspec reads the fields' types
from ipaddress import IPv4Network, IPv6Address, ip_network
from typing import TYPE_CHECKING, Final, Self

import msgspec

from monitor.engine._native import ffi, lib
from monitor.errors import EngineRefused
from monitor.expect import place_of
from monitor.remote import Remote

if TYPE_CHECKING:
    from types import TracebackType

    from monitor.engine._native import CData

STAGES: Final = ("ring_full", "table_full", "bad_record", "sink_full", "spool_full", "hook_missed")
"""Where details are lost, in the order of `enum kw_stage` in ebpf/event.h; the words of `lost` lines."""

_EXES_BYTES = 64 << 10
_TREE_BYTES = 64 << 10
_REMOTES = 1024
_PORTS = 1024
_PROTOCOLS = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp"}
_MAX_PROCESSES = 1 << 22  # PID_MAX_LIMIT of a 64-bit kernel: there cannot be more


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine made since the last take."""

    lines: bytes
    """JSON Lines, each ended by a newline, valid UTF-8 (schema: monitor.engine.lines)."""
    lines_count: int
    records: bytes
    """The accepted records as they came, while recording; empty otherwise."""
    alarms: int
    """Alarm lines among the lines."""
    clears: int
    """Clear lines among the lines."""
    hurried: bool
    """An alarm stands that time alone clears: a clock record a second later may do it."""


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of one watch as the records tell them (source and meaning: `struct kw_counters` in ebpf/event.h)."""

    roots: int
    alive: int
    peak: int
    spawned: int
    adopted: int
    execs: int
    exits: int
    root_starts: int
    root_exits: int
    enforced: int
    """Processes killed, or to be killed by user space."""
    would_enforce: int
    """Processes that a dry run, or a breaker that had tripped, let go."""
    window_peak: int
    """Most descendants alive at once since the asking reader began its window; 0 when no reader asked."""


class LineageRules(msgspec.Struct, frozen=True, kw_only=True):
    """Rules about the descendants of a watch; None: not judged. Meaning of each: monitor.expect.Expect."""

    executables: Sequence[str] | None = None
    files: Sequence[tuple[int, int]] | None = None
    """(device, inode) of the executables, as image records have them; None: their paths are compared, and a record's
    KW_JUDGED was about other ones."""
    edges: Sequence[str] | None = None
    depth: int | None = None
    forks_per_minute: int | None = None
    uids: Sequence[int] | None = None
    forbidden: int = 0
    """Of KW_MEMFD, KW_DELETED and KW_TEMPORARY: images that there must not be."""
    root: str | None = None
    """What a root may execute: an absolute path, or a name of process, file or script; None: anything."""


class Engine:
    """Lineage, counters, instant expectations and lines for at most `max_processes` live kin.

    Raises EngineRefused from any method when the native engine refuses, and after `close`.
    """

    def __init__(self, max_processes: int = 32768) -> None:
        if not 1 <= max_processes <= _MAX_PROCESSES:
            text = f"an engine for {max_processes} processes: must be between 1 and {_MAX_PROCESSES}"
            raise EngineRefused(text)
        handle = lib.kw_engine_new(max_processes)
        if handle == ffi.NULL:
            text = f"no memory for an engine of {max_processes} processes: lower [capture] max_processes"
            raise EngineRefused(text)
        self._handle: CData | None = ffi.gc(handle, lib.kw_engine_free)
        self._taking = threading.Lock()
        self._batch = ffi.new("struct kw_batch *")

    @property
    def handle(self) -> CData:
        """The `struct kw_engine *`, for native code that feeds this engine."""
        if self._handle is None:
            raise EngineRefused("the engine is closed")
        return self._handle

    def watch(self, slot: int, name: str, child_limit: int | None) -> None:
        """Define the watch of a slot, rename it or change its limit.

        The limit is how many descendants may be alive at once without an alarm; None: any number. A changed limit is
        judged at once; a standing alarm whose limit is withdrawn is cleared.
        """
        limit = -1 if child_limit is None else child_limit
        if child_limit is not None and child_limit < 0:
            text = f"watch {name!r}: a limit of {child_limit} children is not possible"
            raise EngineRefused(text)
        result = lib.kw_engine_watch(self.handle, slot, name.encode(), limit)
        _check(result, f"watch {name!r} in slot {slot}")

    def unwatch(self, slot: int) -> None:
        """Forget a slot's watch, its kin and its counters. A standing alarm is cleared first."""
        _check(lib.kw_engine_unwatch(self.handle, slot), f"unwatch slot {slot}")

    def ingest(self, records: bytes | bytearray | memoryview) -> int:
        """Take in records, back to back; return how many were accepted. What is refused counts as bad_record."""
        cells = ffi.from_buffer("uint8_t[]", records)
        return lib.kw_engine_ingest(self.handle, cells, len(cells))

    def take(self) -> Batch:
        """Return what was made since the last take."""
        batch = self._batch
        with self._taking:
            lib.kw_engine_take(self.handle, batch)
            return Batch(
                lines=bytes(ffi.buffer(batch.lines, batch.lines_bytes)),
                lines_count=batch.lines_count,
                records=bytes(ffi.buffer(batch.records, batch.records_bytes)),
                alarms=batch.alarms,
                clears=batch.clears,
                hurried=bool(batch.hurried),
            )

    def record(self, *, on: bool) -> None:
        """Also keep accepted records for `take`, from now on, or no more."""
        lib.kw_engine_record(self.handle, int(on))

    def counters(self, slot: int, reader: int | None = None) -> Counters:
        """Return a slot's counters; with a reader (0 to KW_READERS - 1) also begin that reader's window."""
        cells = ffi.new("struct kw_counters *")
        number = -1 if reader is None else reader
        if reader is not None and reader < 0:
            text = f"counters of slot {slot}: there is no reader {reader}"
            raise EngineRefused(text)
        _check(lib.kw_engine_counters(self.handle, slot, number, cells), f"counters of slot {slot} for reader {reader}")
        return Counters(
            roots=cells.roots,
            alive=cells.alive,
            peak=cells.peak,
            spawned=cells.spawned,
            adopted=cells.adopted,
            execs=cells.execs,
            exits=cells.exits,
            root_starts=cells.root_starts,
            root_exits=cells.root_exits,
            enforced=cells.enforced,
            would_enforce=cells.would_enforce,
            window_peak=0 if reader is None else cells.window_peak[reader],
        )

    def losses(self) -> dict[str, int]:
        """Details lost since the engine was made, by stage; every stage is named."""
        cells = ffi.new("uint64_t[]", lib.KW_STAGES)
        lib.kw_engine_losses(self.handle, cells)
        return dict(zip(STAGES, cells, strict=True))

    def mark(self) -> int:
        """Return a mark for `exes`, `remotes` and `listening`: what is noted after it is newer."""
        return lib.kw_engine_mark(self.handle)

    def exes(self, slot: int, mark: int) -> tuple[tuple[str, ...], int]:
        """Return the distinct executables that descendants ran since mark, and how many more are missed.

        The one whose last run is oldest comes first. Bytes that are not UTF-8 appear as U+FFFD.
        """
        missed = ffi.new("uint64_t *")
        room = _EXES_BYTES
        while True:
            out = ffi.new("char[]", room)
            needed = lib.kw_engine_exes(self.handle, slot, mark, out, room, missed)
            _check(needed, f"executables of slot {slot}")
            if needed <= room:
                text = bytes(ffi.buffer(out, needed)).decode(errors="replace")
                return tuple(text.split("\0")[:-1]), int(missed[0])
            room = needed

    def expect_destinations(self, slot: int, places: Sequence[str] | None, names: Sequence[str] | None = None) -> None:
        """Kin of slot connects and sends to these places and names only, judged at once; None for both: anywhere.

        A place is a network, or one with a port, as `monitor.expect.destinations` writes them, a name as
        `monitor.expect.destination_names` does: the addresses that DNS answers to kin of slot, seen before the
        connection, gave to it. An IPv6 network never holds IPv4 addresses. Raises ValueError for what is no place,
        EngineRefused for what is no name.
        """
        rows = b"".join(_row(place) for place in places or ())
        cells = ffi.from_buffer("uint8_t[]", rows)
        count = -1 if places is None and names is None else len(places or ())
        texts = _texts(names)
        patterns = ffi.from_buffer("char[]", texts)
        result = lib.kw_engine_expect_destinations(self.handle, slot, cells, count, patterns, len(texts))
        _check(result, f"expected destinations of slot {slot}")

    def expect_ports(self, slot: int, ports: Sequence[int] | None) -> None:
        """Kin of slot listens on these TCP and UDP ports only; None: on any, empty: on none. Judged at once."""
        count = -1 if ports is None else len(ports)
        result = lib.kw_engine_expect_ports(self.handle, slot, ffi.new("uint16_t[]", list(ports or ())), count)
        _check(result, f"expected ports of slot {slot}")

    def expect_lineage(self, slot: int, rules: LineageRules) -> None:
        """Put these rules in the place of what they were; who lives is judged at once, by what is known of it."""
        cells = {
            "executables": ffi.from_buffer("char[]", _texts(rules.executables)),
            "edges": ffi.from_buffer("char[]", _texts(rules.edges)),
            "root": ffi.NULL if rules.root is None else ffi.from_buffer("char[]", _texts((rules.root,))),
            "files": ffi.new("struct kw_file[]", [(inode, device, 0) for device, inode in rules.files or ()]),
            "uids": ffi.new("uint32_t[]", list(rules.uids or ())),
        }
        counts = {f"{name}_count": _count(getattr(rules, name)) for name in ("executables", "edges", "files", "uids")}
        numbers = {name: _most(getattr(rules, name)) for name in ("depth", "forks_per_minute")}
        expected = ffi.new("struct kw_expected_lineage *", {**cells, **counts, **numbers, "forbidden": rules.forbidden})
        _check(lib.kw_engine_expect_lineage(self.handle, slot, expected), f"rules on lineage of slot {slot}")

    def breaker(self, kills_per_minute: int | None) -> None:
        """Enforcement begins, or begins anew, and stops beyond so many kills within a minute; None: there is none.

        The alarm about an earlier stop is cleared.
        """
        _check(lib.kw_engine_breaker(self.handle, _most(kills_per_minute)), "breaker")

    def remotes(self, slot: int, mark: int) -> tuple[tuple[Remote, ...], int]:
        """Return the distinct remotes of slot used since mark or still connected, and how many more are missed.

        The one whose last use is oldest comes first.
        """
        missed = ffi.new("uint64_t *")
        room = _REMOTES
        while True:
            out = ffi.new("struct kw_remote[]", room)
            count = lib.kw_engine_remotes(self.handle, slot, mark, out, room, missed)
            _check(count, f"remotes of slot {slot}")
            if count <= room:
                return tuple(_remote(out[i]) for i in range(count)), int(missed[0])
            room = count

    def listening(self, slot: int, mark: int) -> tuple[tuple[tuple[str, int], ...], int]:
        """Return the (protocol, port) pairs that kin of slot listened on since mark, or does, and how many are missed.

        The protocol is a word of `Remote.protocol`.
        """
        missed = ffi.new("uint64_t *")
        room = _PORTS
        while True:
            out = ffi.new("uint32_t[]", room)
            count = lib.kw_engine_listening(self.handle, slot, mark, out, room, missed)
            _check(count, f"listening ports of slot {slot}")
            if count <= room:
                return tuple((_protocol(out[i] >> 16), out[i] & 0xFFFF) for i in range(count)), int(missed[0])
            room = count

    def tree(self) -> bytes:
        """Live kin, one JSON object a line, parents before children.

        Keys: pid, process_id, parent_process_id?, comm, exe?, uid?, watches, lossy?; each of watches: watch, root?,
        depth?, root_process_id?.
        """
        room = _TREE_BYTES
        while True:
            out = ffi.new("char[]", room)
            needed = lib.kw_engine_tree(self.handle, out, room)
            _check(needed, "tree")
            if needed <= room:
                return bytes(ffi.buffer(out, needed))
            room = needed + needed // 4  # processes start while we ask again

    def close(self) -> None:
        """Free the engine. Idempotent. No other thread may be inside a method."""
        handle, self._handle = self._handle, None
        if handle is not None:
            ffi.release(handle)

    def __enter__(self) -> Self:
        """Return the engine."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()


def _check(result: int, what: str) -> None:
    if result < 0:
        text = f"{what}: refused by the engine: {errno.errorcode.get(-result, -result)} ({os.strerror(-result)})"
        raise EngineRefused(text)


def _texts(texts: Sequence[str] | None) -> bytes:
    return b"".join(text.encode() + b"\0" for text in texts or ())


def _count(members: Sequence[object] | None) -> int:
    return -1 if members is None else len(members)


def _most(number: int | None) -> int:
    return -1 if number is None else number


def _row(place: str) -> bytes:
    # As kw_engine_expect_destinations() takes it: 16 bytes of address, IPv4 mapped, length of the prefix, port.
    cidr, port = place_of(place)
    network = ip_network(cidr, strict=False)
    behind = port.to_bytes(2, "big")
    if isinstance(network, IPv4Network):
        return bytes(10) + b"\xff\xff" + network.network_address.packed + bytes((96 + network.prefixlen,)) + behind
    return network.network_address.packed + bytes((network.prefixlen,)) + behind


def _protocol(number: int) -> str:
    return _PROTOCOLS.get(number, str(number))


def _remote(cell: CData) -> Remote:
    address = IPv6Address(bytes(cell.address))
    return Remote(
        address=str(address.ipv4_mapped or address),
        port=cell.port,
        protocol=_protocol(cell.protocol),
        incoming=bool(cell.incoming),
    )

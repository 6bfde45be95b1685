"""Records as bytes, made field by field in the layout of ebpf/event.h: for captures in Python and for tests.

Owns the building of records; the layout is the C compiler's. Refuses to know what the engine makes of them.

An argument that is None is unknown: its flag stays clear and the line leaves the key out. Times are nanoseconds of
CLOCK_BOOTTIME, masks have bit 1 << slot. Further flags (KW_TRUNCATED, KW_APPROXIMATE, ...) are ORed in through `flags`.
"""

# ruff: noqa: PLR0913, PLR0917 - one argument per field of the wire
from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, NamedTuple

from monitor.engine import STAGES
from monitor.engine._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from monitor.engine._native import CData

_ALIGNMENT = 8
_IPV4_BYTES = 4


class ProcessId(NamedTuple):
    """A process: pid in the initial pid namespace and start time, nanoseconds of CLOCK_BOOTTIME."""

    pid: int
    start_ns: int

    def __str__(self) -> str:
        """As lines write it: `pid-ticks`."""
        return f"{self.pid}-{self.start_ns // lib.KW_TICK_NS}"


class Lineage(NamedTuple):
    """The outermost root of a process and how far below it the process is (the root itself: 0)."""

    root: ProcessId
    depth: int


class Credentials(NamedTuple):
    """Effective owner, in the initial user namespace."""

    uid: int
    gid: int


def _header(record: CData, kind: int, time_ns: int, watches: int, roots: int, flags: int) -> None:
    header = record.header
    header.size = ffi.sizeof(record[0])
    header.kind = kind
    header.flags = flags
    header.time_ns = time_ns
    header.watches = watches
    header.roots = roots


def _id(cell: CData, process: ProcessId) -> None:
    cell.pid = process.pid
    cell.start_ns = process.start_ns


def _comm(record: CData, comm: bytes) -> None:
    kept = comm[: lib.KW_COMM_BYTES]
    ffi.memmove(record.comm, kept, len(kept))


def _lineage(record: CData, lineage: Lineage | None) -> int:
    if lineage is None:
        return 0
    _id(record.root, lineage.root)
    record.depth = lineage.depth
    return lib.KW_HAS_ROOT


def _parent(record: CData, parent: ProcessId | None) -> int:
    if parent is None:
        return 0
    _id(record.parent, parent)
    return lib.KW_HAS_PARENT


def _uid(record: CData, uid: int | None) -> int:
    if uid is None:
        return 0
    record.uid = uid
    return lib.KW_HAS_CREDENTIALS


def _bytes(record: CData) -> bytes:
    return bytes(ffi.buffer(record))


def fork_record(
    *,
    time_ns: int,
    process: ProcessId,
    parent: ProcessId | None,
    watches: int,
    comm: bytes,
    lineage: Lineage | None = None,
    uid: int | None = None,
    flags: int = 0,
) -> bytes:
    """`struct kw_fork`: a child of kin was made. comm is cut at 16 bytes."""
    record = ffi.new("struct kw_fork *")
    flags |= _parent(record, parent) | _lineage(record, lineage) | _uid(record, uid)
    _header(record, lib.KW_FORK, time_ns, watches, 0, flags)
    _id(record.process, process)
    _comm(record, comm)
    return _bytes(record)


def image_record(
    *,
    kind: int,
    time_ns: int,
    process: ProcessId,
    watches: int,
    comm: bytes,
    roots: int = 0,
    fresh: int = 0,
    cause: int = 0,
    parent: ProcessId | None = None,
    lineage: Lineage | None = None,
    ppid: int | None = None,
    credentials: Credentials | None = None,
    exe: bytes | None = None,
    inode: int = 0,
    device: int = 0,
    script: bytes | None = None,
    argv: Sequence[bytes] | None = None,
    cwd: bytes | None = None,
    unexpected: int | None = None,
    temporary: bool = False,
    flags: int = 0,
) -> bytes:
    """`struct kw_image` of kind KW_EXEC or KW_ADOPT, with its tail.

    Paths are cut at KW_PATH_BYTES, the argument block at KW_ARGV_BYTES; what was cut sets KW_TRUNCATED. cause must be
    one of KW_CAUSE_* where `fresh` has a root's bit. unexpected: slots whose expected executables the file is none of,
    None: nobody has compared them. temporary: it lies where anybody may write.
    """
    record = ffi.new("struct kw_image *")
    flags |= _parent(record, parent) | _lineage(record, lineage)
    if credentials is not None:
        record.uid, record.gid = credentials
        flags |= lib.KW_HAS_CREDENTIALS
    if ppid is not None:
        record.ppid = ppid
        flags |= lib.KW_HAS_PPID
    if exe is not None:
        record.inode, record.device = inode, device
        flags |= lib.KW_HAS_EXE
    if unexpected is not None:
        record.unexpected = unexpected
        flags |= lib.KW_JUDGED
    flags |= lib.KW_TEMPORARY if temporary else 0
    block = b""
    if argv is not None:
        block = b"".join(argument + b"\0" for argument in argv)
        record.argv_bytes = len(block)
        flags |= lib.KW_HAS_ARGV
    record.fresh = fresh
    record.cause = cause
    _id(record.process, process)
    _comm(record, comm)
    tail = b""
    for cell, text, longest in (
        (record.exe, exe or b"", lib.KW_PATH_BYTES),
        (record.script, script or b"", lib.KW_PATH_BYTES),
        (record.argv, block, lib.KW_ARGV_BYTES),
        (record.cwd, cwd or b"", lib.KW_PATH_BYTES),
    ):
        kept = text[:longest]
        if len(text) > longest:
            flags |= lib.KW_TRUNCATED
        if kept:
            cell.offset = ffi.sizeof("struct kw_image") + len(tail)
            cell.length = len(kept)
            tail += kept
    tail += bytes(-len(tail) % _ALIGNMENT)
    _header(record, kind, time_ns, watches, roots, flags)
    record.header.size += len(tail)
    return _bytes(record) + tail


def exit_record(
    *,
    time_ns: int,
    process: ProcessId,
    watches: int,
    comm: bytes,
    roots: int = 0,
    lineage: Lineage | None = None,
    status: int | None = None,
    uid: int | None = None,
    flags: int = 0,
) -> bytes:
    """`struct kw_exit`: the last thread is gone. status is as wait(2) gives it."""
    record = ffi.new("struct kw_exit *")
    flags |= _lineage(record, lineage) | _uid(record, uid)
    if status is not None:
        record.status = status
        flags |= lib.KW_HAS_STATUS
    _header(record, lib.KW_EXIT, time_ns, watches, roots, flags)
    _id(record.process, process)
    _comm(record, comm)
    return _bytes(record)


def forget_record(*, time_ns: int, process: ProcessId, gone: int, watches: int = 0, roots: int = 0) -> bytes:
    """`struct kw_forget`: the process lives on, no longer kin of the slots in `gone`; watches, roots: what is left."""
    record = ffi.new("struct kw_forget *")
    _header(record, lib.KW_FORGET, time_ns, watches, roots, 0)
    _id(record.process, process)
    record.gone = gone
    return _bytes(record)


def sync_record(
    *,
    phase: int,
    time_ns: int,
    process: ProcessId | None = None,
    watches: int = 0,
    roots: int = 0,
    parent: ProcessId | None = None,
    lineage: Lineage | None = None,
    uid: int | None = None,
    comm: bytes = b"",
    flags: int = 0,
) -> bytes:
    """`struct kw_sync`: phase 0 begins (time_ns: before the first row was read), 1 is a row, 2 ends.

    3 and 4: begin and end of the same for sockets.
    """
    record = ffi.new("struct kw_sync *")
    flags |= _parent(record, parent) | _lineage(record, lineage) | _uid(record, uid)
    _header(record, lib.KW_SYNC, time_ns, watches, roots, flags)
    if process is not None:
        _id(record.process, process)
    record.phase = phase
    _comm(record, comm)
    return _bytes(record)


class Endpoint(NamedTuple):
    """One side of a connection."""

    address: IPv4Address | IPv6Address
    port: int


NOWHERE = Endpoint(IPv6Address(0), 0)
"""An endpoint that is not known, or that is not there."""


def _address(cell: CData, family: int, address: IPv4Address | IPv6Address) -> None:
    packed = address.packed
    if family == socket.AF_INET and len(packed) > _IPV4_BYTES:
        packed = packed[-_IPV4_BYTES:]  # of NOWHERE; a mapped address is its last bytes, too
    elif family == socket.AF_INET6 and len(packed) == _IPV4_BYTES:
        packed = bytes(10) + b"\xff\xff" + packed
    ffi.memmove(cell, packed, len(packed))


def socket_record(
    *,
    event: int,
    time_ns: int,
    process: ProcessId,
    watches: int,
    cookie: int,
    family: int = socket.AF_INET,
    protocol: int = socket.IPPROTO_TCP,
    type: int = socket.SOCK_STREAM,  # noqa: A002 - the word of socket(2) and of the wire
    local: Endpoint = NOWHERE,
    remote: Endpoint = NOWHERE,
    result: int = 0,
    state: int = 0,
    bytes_in: int = 0,
    bytes_out: int = 0,
    roots: int = 0,
    lineage: Lineage | None = None,
    comm: bytes = b"",
    flags: int = 0,
) -> bytes:
    """`struct kw_socket`: something (KW_SOCKET_*) happened to a socket that process owns.

    family AF_INET6 writes an IPv4 address as mapped. result: a positive errno, or KW_LIVE_* of
    KW_SOCKET_LIVE; state: TCP_* of the kernel, for KW_SOCKET_LIVE.
    """
    record = ffi.new("struct kw_socket *")
    flags |= _lineage(record, lineage)
    _header(record, lib.KW_SOCKET, time_ns, watches, roots, flags)
    _id(record.process, process)
    _comm(record, comm)
    record.event, record.cookie, record.result, record.state = event, cookie, result, state
    record.family, record.protocol, record.type = family, protocol, type
    record.bytes_in, record.bytes_out = bytes_in, bytes_out
    _address(record.local, family, local.address)
    _address(record.remote, family, remote.address)
    record.local_port, record.remote_port = local.port, remote.port
    return _bytes(record)


def dns_record(
    *,
    time_ns: int,
    process: ProcessId,
    watches: int,
    cookie: int,
    server: Endpoint,
    message: bytes,
    incoming: bool,
    family: int = socket.AF_INET,
    protocol: int = socket.IPPROTO_UDP,
    total: int | None = None,
    roots: int = 0,
    lineage: Lineage | None = None,
    flags: int = 0,
) -> bytes:
    """`struct kw_dns` with its tail: a DNS message from the server (incoming) or to it, as on the wire.

    It is cut at KW_DNS_BYTES. total: its true length, when message is a part of it only.
    """
    record = ffi.new("struct kw_dns *")
    flags |= _lineage(record, lineage)
    kept = message[: lib.KW_DNS_BYTES]
    _header(record, lib.KW_DNS, time_ns, watches, roots, flags)
    _id(record.process, process)
    record.cookie, record.total = cookie, len(message) if total is None else total
    record.family, record.protocol, record.incoming = family, protocol, int(incoming)
    _address(record.remote, family, server.address)
    record.remote_port = server.port
    record.message.offset, record.message.length = ffi.sizeof("struct kw_dns"), len(kept)
    tail = kept + bytes(-len(kept) % _ALIGNMENT)
    record.header.size += len(tail)
    return _bytes(record) + tail


def enforced_record(
    *,
    time_ns: int,
    process: ProcessId,
    slots: int,
    reason: int,
    action: int,
    watches: int | None = None,
    roots: int = 0,
    comm: bytes = b"",
    lineage: Lineage | None = None,
    uid: int | None = None,
    flags: int = 0,
) -> bytes:
    """`struct kw_enforced`: KW_ACTION_* was taken for KW_REASON_*, an expectation of each of `slots`.

    watches: slots that the process is kin of, None: those.
    """
    record = ffi.new("struct kw_enforced *")
    flags |= _lineage(record, lineage) | _uid(record, uid)
    _header(record, lib.KW_ENFORCED, time_ns, slots if watches is None else watches, roots, flags)
    _id(record.process, process)
    record.slots, record.reason, record.action = slots, reason, action
    _comm(record, comm)
    return _bytes(record)


def lost_record(*, time_ns: int, stage: int | str, count: int) -> bytes:
    """`struct kw_lost`: `count` details were lost at `stage`, a number of enum kw_stage or a name of STAGES.

    Raises ValueError for another name.
    """
    record = ffi.new("struct kw_lost *")
    _header(record, lib.KW_LOST, time_ns, 0, 0, 0)
    record.stage = STAGES.index(stage) if isinstance(stage, str) else stage
    record.count = count
    return _bytes(record)


def clock_record(*, time_ns: int, wall_ns: int) -> bytes:
    """`struct kw_clock`: CLOCK_REALTIME - CLOCK_BOOTTIME, nanoseconds, from here on."""
    record = ffi.new("struct kw_clock *")
    _header(record, lib.KW_CLOCK, time_ns, 0, 0, 0)
    record.wall_ns = wall_ns
    return _bytes(record)

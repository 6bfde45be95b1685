"""The Python face of native/device*.c: what the whole device does on the network, as rows of bytes.

Owns the memory of a look at the device and the translation of its failures. Refuses to know who opened the netlink
sockets it reads from (`monitor.capture.diag`), and what a report is. Long calls release the GIL.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from monitor.engine._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterable

    from monitor.engine._native import CData

CONNECTIONS: Final = lib.KW_DEVICE_CONNECTIONS
TCP: Final = lib.KW_DEVICE_TCP
UDP: Final = lib.KW_DEVICE_UDP

PORT_BYTES: Final = ffi.sizeof("struct kw_device_port")
CONNECTION_BYTES: Final = ffi.sizeof("struct kw_device_connection")

_PORT: Final = struct.Struct(">H16s")
_SHOWN: Final = struct.Struct(">48sH16s")
_SEED: Final = int.from_bytes(os.urandom(8), "big")
_SAYS: Final = {
    errno.EBADMSG: "a netlink message that is torn",
    errno.EMSGSIZE: "a netlink message that is longer than its buffer",
    errno.ETIMEDOUT: "the kernel did not answer over netlink in time",
}


class Socket(NamedTuple):
    """A socket of a table, as whoever has no netlink names it."""

    family: int
    """AF_INET or AF_INET6."""
    local: bytes
    """Packed, 4 or 16 bytes; as `remote`, which a listener has, too: zeros."""
    local_port: int
    remote: bytes
    remote_port: int


class Link(NamedTuple):
    """An interface and its counters since it came up."""

    number: int
    """Its index."""
    name: str
    """Bytes that are no UTF-8 are written as \\xNN."""
    packets_in: int
    packets_out: int
    bytes_in: int
    bytes_out: int


class Found(NamedTuple):
    """What a look found in all namespaces. Of rows the width is PORT_BYTES or CONNECTION_BYTES, in no order."""

    tcp: bytes
    """Ports that take connections, each once (`struct kw_device_port`); as `udp`."""
    udp: bytes
    connections: bytes
    """Established ones of TCP (`struct kw_device_connection`)."""


class Look:
    """One look at the device. One thread at a time. Raises OSError from any method when the kernel's answer is one."""

    def __init__(self) -> None:
        handle = lib.kw_device_new(_SEED)
        _check(-errno.ENOMEM if handle == ffi.NULL else 0)
        self._handle: CData = ffi.gc(handle, lib.kw_device_free)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Free its memory now."""
        ffi.release(self._handle)

    def read_sockets(self, netlink: int) -> None:
        """Read the socket tables over a NETLINK_SOCK_DIAG descriptor."""
        _check(lib.kw_device_read_sockets(self._handle, netlink))

    def read_links(self, netlink: int) -> None:
        """Read interfaces and addresses over a NETLINK_ROUTE descriptor."""
        _check(lib.kw_device_read_links(self._handle, netlink))

    def name(
        self,
        sockets: Iterable[tuple[int, Socket]],
        links: Iterable[Link],
        addresses: Iterable[tuple[int, int, bytes]],
    ) -> None:
        """Name what was read elsewhere: sockets with their table, and index, family and bytes of addresses."""
        for table, one in sockets:
            local, remote = one.local.ljust(16, b"\0"), one.remote.ljust(16, b"\0")
            _check(
                lib.kw_device_name_socket(
                    self._handle, table, one.family, local, one.local_port, remote, one.remote_port, 0
                )
            )
        for link in links:
            fields = link._asdict() | {"name": os.fsencode(link.name)}
            cell = ffi.new("struct kw_device_link *", {"index": fields.pop("number"), **fields})
            _check(lib.kw_device_name_link(self._handle, cell))
        for index, family, address in addresses:
            _check(lib.kw_device_name_address(self._handle, index, family, address))

    def settle(self) -> list[Link]:
        """End a namespace: add what is in it to what was found. Returns its interfaces."""
        _check(lib.kw_device_settle(self._handle))
        found = self._tell()
        return [
            Link(
                number=link.index,
                name=_name(ffi.string(link.name)),
                packets_in=link.packets_in,
                packets_out=link.packets_out,
                bytes_in=link.bytes_in,
                bytes_out=link.bytes_out,
            )
            for link in (found.links[number] for number in range(found.links_count))
        ]

    def found(self) -> Found:
        """What is in all the namespaces that were settled."""
        found = self._tell()
        return Found(
            tcp=_rows(found.tcp, found.tcp_count),
            udp=_rows(found.udp, found.udp_count),
            connections=_rows(found.connections, found.connections_count),
        )

    def _tell(self) -> CData:
        found = ffi.new("struct kw_device_found *")
        lib.kw_device_tell(self._handle, found)
        return found


def cut_ports(before: bytes, now: bytes, limit: int) -> list[tuple[int, str]]:
    """At most `limit` of the ports `now`, in order: port and interface.

    Those that are not among `before` first, then those whose number fewest interfaces share, then the first in order.
    """
    room = min(limit, len(now) // PORT_BYTES)
    out = ffi.new("struct kw_device_port[]", room)
    count = lib.kw_device_cut_ports(_SEED, before, len(before), now, len(now), limit, out)
    _check(count)
    names = _Names()
    return [(port, names[name]) for port, name in _PORT.iter_unpack(ffi.buffer(out, count * PORT_BYTES))]


def cut_connections(before: bytes, now: bytes, limit: int) -> list[tuple[str, int, str]]:
    """At most `limit` of the connections `now`, in order: `ip:port` of the remote end, local port and interface.

    Those that are not among `before` first, then those whose remote address fewest share, then the first in order.
    """
    room = min(limit, len(now) // CONNECTION_BYTES)
    out = ffi.new("struct kw_device_shown[]", room)
    count = lib.kw_device_cut_connections(_SEED, before, len(before), now, len(now), limit, out)
    _check(count)
    names = _Names()
    return [
        (remote.rstrip(b"\0").decode(), port, names[name])
        for remote, port, name in _SHOWN.iter_unpack(ffi.buffer(out, count * _SHOWN.size))
    ]


def enter(descriptor: int) -> None:
    """Move this thread into the network namespace of a descriptor. Raises OSError."""
    _check(lib.kw_device_enter(descriptor))


class _Names(dict[bytes, str]):
    """Names of interfaces by their bytes: many entries share one."""

    def __missing__(self, padded: bytes) -> str:
        name = self[padded] = _name(padded.rstrip(b"\0"))
        return name


def _name(name: bytes) -> str:
    # the kernel takes any bytes but a slash, a colon and blanks, and a report has to be UTF-8
    return name.decode(errors="backslashreplace")


def _rows(rows: CData, count: int) -> bytes:
    return bytes(ffi.buffer(rows, count * ffi.sizeof(rows[0]))) if count else b""


def _check(result: int) -> None:
    if result < 0:
        raise OSError(-result, _SAYS.get(-result) or os.strerror(-result))

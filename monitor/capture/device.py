"""Reads what the whole device does on the network, without a walk through /proc.

Owns what rows of the kernel's tables mean: listeners, connections, interfaces, and which namespaces are looked into.
Refuses to know reports and windows: `monitor.detect.device` makes those; netlink: that is `monitor.capture.diag`.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys
from collections import defaultdict
from typing import TYPE_CHECKING, Final

import psutil

from monitor.capture.diag import Link, Row, Tables, Unavailable, View, view_of
from monitor.detect.device import Connection, CpuTime, DeviceReading, NetworkStats, Port

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_OWN: Final = "/proc/self/ns/net"
_MAPPED: Final = bytes(10) + b"\xff\xff"
_NO_DEVICE: Final = bytes(4)
_LOOPBACK: Final = bytes((127, 0, 0, 1))
_FAMILIES: Final[tuple[int, int]] = (socket.AF_INET, socket.AF_INET6)
_GONE: Final = frozenset({errno.ENOENT, errno.ESRCH})


class DeviceReader:
    """Reads the device's own network namespace, always, and those that the configuration names."""

    def __init__(
        self, *, cpu: bool = False, namespaces: Sequence[str] = (), say: Callable[[str], object] | None = None
    ) -> None:
        """`cpu`: the processors' time too. `namespaces`: paths. `say`: takes what cannot be read, once each time."""
        self._cpu = cpu
        self._namespaces = tuple(namespaces)
        self._say = say or _ignore
        self._said: dict[str, str] = {}

    def change(self, *, cpu: bool, namespaces: Sequence[str]) -> None:
        """Read something else from now on."""
        self._cpu, self._namespaces = cpu, tuple(namespaces)

    def read(self) -> DeviceReading:
        """Read socket tables and interface counters, once.

        A UDP socket connected to a peer is no listener. A port that is open on an interface is one entry, however many
        sockets and namespaces share it: the format of reports tells no namespaces apart. Connections are counted in
        each. Source: sock_diag(7) and rtnetlink(7); where the kernel has no inet_diag, psutil's walk through /proc, for
        the own namespace only. Raises OSError or psutil.Error when that cannot be read either.
        """
        tables, netlink = self._own()
        found = _Found()
        found.add(tables, "")
        known: dict[str, int] = {}
        looked = {os.stat(_OWN).st_ino}  # noqa: PTH116 - a link to no path
        for path in self._namespaces if netlink else ():
            try:
                inode, view = view_of(path)
                with view:
                    if inode in looked:  # two paths of one namespace
                        continue
                    looked.add(inode)
                    found.add(view.tables(), f"{path}:")
                known[path] = inode
                self._said.pop(path, None)
            except OSError as error:
                if error.errno in _GONE:
                    known[path] = 0
                self._tell(
                    path, f"report.namespaces: {path} is left out of reports until it can be read ({error.strerror})"
                )
        return found.reading(known, _cpu() if self._cpu else None)

    def _own(self) -> tuple[Tables, bool]:
        """The tables of the own namespace, and whether they came over netlink."""
        try:
            with View() as view:
                return view.tables(), True
        except Unavailable as error:
            left_out = "; report.namespaces are left out" if self._namespaces else ""
            self._tell("", f"the device's sockets are read from /proc, slowly: {error.strerror}{left_out}")
            return _psutil_tables(), False

    def _tell(self, about: str, text: str) -> None:
        if self._said.get(about) != text:
            self._said[about] = text
            self._say(text)


def read(*, cpu: bool = False, namespaces: Sequence[str] = ()) -> DeviceReading:
    """Read once, as a DeviceReader does."""
    return DeviceReader(cpu=cpu, namespaces=namespaces).read()


def notes(namespaces: Sequence[str] = ()) -> list[str]:
    """Say what a reading of these namespaces has to leave out or do slowly here, and why. Raises as `read`."""
    said: list[str] = []
    DeviceReader(namespaces=namespaces, say=said.append).read()
    return said


def _ignore(_: str) -> None:
    pass


class _Found:
    """What one reading found so far."""

    def __init__(self) -> None:
        self._tcp: set[Port] = set()
        self._udp: set[Port] = set()
        self._connections: list[Connection] = []
        self._interfaces: dict[str, NetworkStats] = {}

    def add(self, tables: Tables, prefix: str) -> None:
        """Add a namespace. `prefix`: what the names of its interfaces get, for counters of the same name."""
        names = {link.number: link.name for link in tables.links}
        places = _places(tables, names)
        shown = {family: _Shown(family) for family in _FAMILIES}

        def at_device(family: int, local: bytes, bound: bytes) -> str:
            """The device it is bound to knows better than the address."""
            return names.get(int.from_bytes(bound, sys.byteorder)) or places[family][local]

        self._connections += [
            Connection(
                f"{shown[family][remote]}:{remote_port}",
                port,
                places[family][local] if bound == _NO_DEVICE else at_device(family, local, bound),
            )
            for family, port, remote_port, local, remote, bound in tables.connections
        ]
        for ports, rows in ((self._tcp, tables.listeners), (self._udp, tables.udp)):
            ports.update(
                [
                    Port(port, places[family][local] if bound == _NO_DEVICE else at_device(family, local, bound))
                    for family, port, _, local, _, bound in rows
                ]
            )
        for link in tables.links:
            self._interfaces[prefix + link.name] = NetworkStats(
                bytes_in=link.bytes_in,
                bytes_out=link.bytes_out,
                packets_in=link.packets_in,
                packets_out=link.packets_out,
            )

    def reading(self, known: dict[str, int], cpu: CpuTime | None) -> DeviceReading:
        """All of it."""
        return DeviceReading(
            tcp_ports=frozenset(self._tcp),
            udp_ports=frozenset(self._udp),
            connections=tuple(self._connections),
            interfaces=self._interfaces,
            namespaces=known,
            cpu=cpu,
        )


def _bare(family: int, address: bytes) -> bytes:
    """An address in its one form: of 16 bytes of a row 4 where it is IPv4, be it mapped into IPv6."""
    if family == socket.AF_INET:
        return address[:4]
    return address[12:] if address.startswith(_MAPPED) else address


def _text(bare: bytes) -> str:
    """Write an address."""
    if len(bare) == 4:  # noqa: PLR2004 - bytes of an IPv4 address
        return socket.inet_ntop(socket.AF_INET, bare)
    text = socket.inet_ntop(socket.AF_INET6, bare)
    # inet_ntop(3) writes the outdated ::a.b.c.d where RFC 5952 wants hexadecimal
    return str(ipaddress.IPv6Address(bare)) if "." in text else text


class _Shown(dict[bytes, str]):
    """Remote addresses of a family as reports write them before a port."""

    def __init__(self, family: int) -> None:
        self._family = family

    def __missing__(self, address: bytes) -> str:
        bare = _bare(self._family, address)
        text = self[address] = _text(bare) if len(bare) == 4 else f"[{_text(bare)}]"  # noqa: PLR2004 - as above
        return text


class _Places(dict[bytes, str]):
    """Interfaces by local address of a family: its name, the wildcard itself, or "" when it is not one interface."""

    def __init__(self, family: int, named: dict[bytes, set[str]]) -> None:
        self._family, self._named = family, named

    def __missing__(self, address: bytes) -> str:
        bare = _bare(self._family, address)
        if not any(bare):
            place = _text(bare)
        else:
            # all of 127.0.0.0/8 is local to the loopback interface, whatever addresses it lists
            loopback = self._named.get(_LOOPBACK, set()) if len(bare) == 4 and bare[0] == 127 else set()  # noqa: PLR2004
            names = self._named.get(bare) or loopback
            place = next(iter(names)) if len(names) == 1 else ""
        self[address] = place
        return place


def _places(tables: Tables, names: dict[int, str]) -> dict[int, _Places]:
    named: dict[bytes, set[str]] = defaultdict(set)  # the same link-local address may live on several
    for index, address in tables.addresses:
        if index in names:
            named[_bare(socket.AF_INET6 if len(address) == 16 else socket.AF_INET, address)].add(names[index])  # noqa: PLR2004
    return {family: _Places(family, named) for family in _FAMILIES}


def _psutil_tables() -> Tables:
    """The same tables by psutil, which walks through every descriptor of every process, and names no bound device."""
    connections: set[Row] = set()
    listeners: set[Row] = set()
    udp: set[Row] = set()
    for row in psutil.net_connections(kind="inet"):
        if not row.laddr:
            continue
        remote, remote_port = (_packed(row.family, row.raddr.ip), row.raddr.port) if row.raddr else (bytes(16), 0)
        made = (int(row.family), row.laddr.port, remote_port, _packed(row.family, row.laddr.ip), remote, _NO_DEVICE)
        if row.type == socket.SOCK_DGRAM:
            if not row.raddr:
                udp.add(made)
        elif row.status == psutil.CONN_LISTEN:
            listeners.add(made)
        elif row.status == psutil.CONN_ESTABLISHED and row.raddr:
            connections.add(made)
    # nowrap would keep history in a global of psutil; blocks() judges counters that fell
    counters = psutil.net_io_counters(pernic=True, nowrap=False)
    entries = psutil.net_if_addrs()
    indexes = {name: index for index, name in enumerate(sorted({*counters, *entries}), 1)}
    return Tables(
        connections,
        listeners,
        udp,
        [
            Link(indexes[name], name, io.packets_recv, io.packets_sent, io.bytes_recv, io.bytes_sent)
            for name, io in counters.items()
        ],
        [
            (indexes[name], socket.inet_pton(entry.family, entry.address.partition("%")[0]))
            for name, of in entries.items()
            for entry in of
            if entry.family in {socket.AF_INET, socket.AF_INET6}
        ],
    )


def _packed(family: int, address: str) -> bytes:
    return socket.inet_pton(family, address.partition("%")[0]).ljust(16, b"\0")


def _cpu() -> CpuTime:
    """Source: the first line of /proc/stat (proc(5)); time of guests is part of user and nice already."""
    times = psutil.cpu_times()
    all_s = times.user + times.nice + times.system + times.idle + times.iowait + times.irq + times.softirq + times.steal
    return CpuTime(busy_s=all_s - times.idle - times.iowait, all_s=all_s)

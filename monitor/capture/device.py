"""Reads what the whole device does on the network, without a walk through /proc.

Owns which namespaces are looked into, what stands in for netlink where there is none, and what is said about either.
Refuses to know reports and windows: `monitor.detect.device` makes those; netlink: that is `monitor.capture.diag`; what
a row means: `monitor.engine.device` does.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Final

import psutil

from monitor.capture.diag import Unavailable, read_own, view_of
from monitor.detect.device import CpuTime, DeviceReading, NetworkStats
from monitor.engine.device import CONNECTIONS, TCP, UDP, Link, Look, Socket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_OWN: Final = "/proc/self/ns/net"
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
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
        known: dict[str, int] = {}
        with Look() as look:
            links, netlink = self._own(look)
            interfaces = dict(_stats("", links))
            looked = {os.stat(_OWN).st_ino}  # noqa: PTH116 - a link to no path
            for path in self._namespaces if netlink else ():
                try:
                    inode, view = view_of(path)
                    with view:
                        if inode in looked:  # two paths of one namespace
                            continue
                        looked.add(inode)
                        interfaces |= _stats(f"{path}:", view.read(look))
                    known[path] = inode
                    self._said.pop(path, None)
                except OSError as error:
                    if error.errno in _GONE:
                        known[path] = 0
                    left_out = f"report.namespaces: {path} is left out of reports until it can be read"
                    self._tell(path, f"{left_out} ({error.strerror})")
            found = look.found()
        return DeviceReading(
            tcp=found.tcp,
            udp=found.udp,
            connected=found.connections,
            interfaces=interfaces,
            namespaces=known,
            cpu=_cpu() if self._cpu else None,
        )

    def _own(self, look: Look) -> tuple[list[Link], bool]:
        """Add the own namespace. Returns its interfaces, and whether they came over netlink."""
        try:
            return read_own(look), True
        except Unavailable as error:
            left_out = "; report.namespaces are left out" if self._namespaces else ""
            self._tell("", f"the device's sockets are read from /proc, slowly: {error.strerror}{left_out}")
            return _read_psutil(look), False

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


def _stats(prefix: str, links: Iterable[Link]) -> Iterator[tuple[str, NetworkStats]]:
    """Counters by name. `prefix`: what tells interfaces of the same name in two namespaces apart."""
    for link in links:
        yield (
            prefix + link.name,
            NetworkStats(
                bytes_in=link.bytes_in,
                bytes_out=link.bytes_out,
                packets_in=link.packets_in,
                packets_out=link.packets_out,
            ),
        )


def _read_psutil(look: Look) -> list[Link]:
    """The same by psutil, which walks through every descriptor of every process, and names no bound device."""
    # nowrap would keep history in a global of psutil; blocks() judges counters that fell
    counters = psutil.net_io_counters(pernic=True, nowrap=False)
    entries = psutil.net_if_addrs()
    indexes = {name: index for index, name in enumerate(sorted({*counters, *entries}), 1)}
    look.name(
        _psutil_sockets(),
        [
            Link(indexes[name], name, io.packets_recv, io.packets_sent, io.bytes_recv, io.bytes_sent)
            for name, io in counters.items()
        ],
        [
            (indexes[name], entry.family, _packed(entry.family, entry.address))
            for name, of in entries.items()
            for entry in of
            if entry.family in _FAMILIES
        ],
    )
    return look.settle()


def _psutil_sockets() -> Iterator[tuple[int, Socket]]:
    for row in psutil.net_connections(kind="inet"):
        if not row.laddr:
            continue
        remote, remote_port = (_packed(row.family, row.raddr.ip), row.raddr.port) if row.raddr else (b"", 0)
        made = Socket(int(row.family), _packed(row.family, row.laddr.ip), row.laddr.port, remote, remote_port)
        if row.type == socket.SOCK_DGRAM:
            if not row.raddr:
                yield UDP, made
        elif row.status == psutil.CONN_LISTEN:
            yield TCP, made
        elif row.status == psutil.CONN_ESTABLISHED and row.raddr:
            yield CONNECTIONS, made


def _packed(family: int, address: str) -> bytes:
    return socket.inet_pton(family, address.partition("%")[0])


def _cpu() -> CpuTime:
    """Source: the first line of /proc/stat (proc(5)); time of guests is part of user and nice already."""
    times = psutil.cpu_times()
    all_s = times.user + times.nice + times.system + times.idle + times.iowait + times.irq + times.softirq + times.steal
    return CpuTime(busy_s=all_s - times.idle - times.iowait, all_s=all_s)

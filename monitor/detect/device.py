"""The device-wide blocks of a report, as plain data, and how two readings become one.

Owns totals, limits and deltas. Refuses to know where readings come from, how rows are compared
(`monitor.engine.device` does) and how a document is written.
"""

from __future__ import annotations

import msgspec

from monitor.detect.metrics import CPU_USAGE, Metric
from monitor.engine.device import CONNECTION_BYTES, PORT_BYTES, cut_connections, cut_ports

LIST_LIMIT = 250
"""Entries kept of each list; totals stay true. Three lists of it stay well under the 128 KB of a report."""

LEAST_CPU_S = 1.0
"""Of processor time that a percentage needs: clock ticks of 10 ms say no percent of less."""


class Port(msgspec.Struct, frozen=True, order=True, gc=False):
    """A port that takes datagrams or connections from anybody."""

    port: int
    interface: str = ""
    """Name of the interface with the local address, or the wildcard itself ("0.0.0.0", "::"); "" unknown."""


class Connection(msgspec.Struct, frozen=True, order=True, gc=False):
    """An established TCP connection."""

    remote_addr: str
    """`ip:port`, IPv6 in brackets, an IPv4 peer of an IPv6 socket as IPv4."""
    local_port: int
    local_interface: str = ""
    """Name of the interface; "" unknown."""


class NetworkStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of an interface since it came up, or what they grew by."""

    bytes_in: int
    bytes_out: int
    packets_in: int
    packets_out: int


class CpuTime(msgspec.Struct, frozen=True, kw_only=True):
    """Time of all processors together since boot, seconds."""

    busy_s: float
    """Neither idle nor waiting for a disk."""
    all_s: float


class DeviceReading(msgspec.Struct, frozen=True, kw_only=True):
    """The network side of this device at one moment: of the reader's network namespace and of those configured."""

    interfaces: dict[str, NetworkStats]
    """By interface name, loopback included; of another namespace by its path, a colon and the name."""
    tcp: bytes = b""
    """Ports that take connections, each once, as rows (`monitor.engine.device.Found`): thousands of them are kept for
    the next window, and only those that a report shows are worth objects. As `udp`."""
    udp: bytes = b""
    connected: bytes = b""
    """Established connections of TCP, as rows."""
    namespaces: dict[str, int] = {}
    """Of the namespaces configured those of which something is known, by path: the inode, 0 where none was there."""
    cpu: CpuTime | None = None
    """None: nobody asked."""

    @property
    def tcp_ports(self) -> tuple[Port, ...]:
        """Every port that takes connections, in order."""
        return _kept_ports(b"", self.tcp, len(self.tcp))

    @property
    def udp_ports(self) -> tuple[Port, ...]:
        """Every port that takes datagrams, in order."""
        return _kept_ports(b"", self.udp, len(self.udp))

    @property
    def connections(self) -> tuple[Connection, ...]:
        """Every established connection, in order."""
        return _kept_connections(b"", self.connected, len(self.connected))


class DeviceBlocks(msgspec.Struct, frozen=True, kw_only=True):
    """What a report says about the device: sorted, perhaps cut lists, and true totals."""

    tcp_ports: tuple[Port, ...]
    tcp_ports_total: int
    udp_ports: tuple[Port, ...]
    udp_ports_total: int
    connections: tuple[Connection, ...]
    connections_total: int
    network_stats: NetworkStats | None
    """Growth since the previous reading; None when there was none."""


def blocks(previous: DeviceReading | None, current: DeviceReading, limit: int = LIST_LIMIT) -> DeviceBlocks:
    """Make the blocks of a window from the reading at its begin (None: unknown) and the one at its end.

    Of a list of more than `limit` entries the newest are kept, then the most unusual: those that the previous reading
    had not, then those whose port or remote address fewest others share, then the first in order. Deltas are taken per
    interface: one that came, or whose counters began anew, counts from zero, one that went takes its last bytes with
    it. A namespace that could not be read before counts from the next reading on.
    """
    before = previous or _NOTHING
    return DeviceBlocks(
        tcp_ports=_kept_ports(before.tcp, current.tcp, limit),
        tcp_ports_total=len(current.tcp) // PORT_BYTES,
        udp_ports=_kept_ports(before.udp, current.udp, limit),
        udp_ports_total=len(current.udp) // PORT_BYTES,
        connections=_kept_connections(before.connected, current.connected, limit),
        connections_total=len(current.connected) // CONNECTION_BYTES,
        network_stats=_growth(previous, current) if previous else None,
    )


def device_metrics(previous: DeviceReading | None, current: DeviceReading) -> list[Metric]:
    """Make the device's own metrics of a window: how busy its processors were, percent, where both readings say it."""
    if previous is None or previous.cpu is None or current.cpu is None:
        return []
    before, now = previous.cpu, current.cpu
    if now.all_s < before.all_s or now.busy_s < before.busy_s:  # another boot
        before = CpuTime(busy_s=0.0, all_s=0.0)
    passed_s = now.all_s - before.all_s
    if passed_s < LEAST_CPU_S:
        return []
    percent = min(100.0, 100.0 * (now.busy_s - before.busy_s) / passed_s)
    return [Metric(CPU_USAGE, "number", round(percent, 1))]


_NOTHING = DeviceReading(interfaces={})


def _kept_ports(before: bytes, now: bytes, limit: int) -> tuple[Port, ...]:
    return tuple([Port(*one) for one in cut_ports(before, now, limit)])


def _kept_connections(before: bytes, now: bytes, limit: int) -> tuple[Connection, ...]:
    return tuple([Connection(*one) for one in cut_connections(before, now, limit)])


def _growth(previous: DeviceReading, current: DeviceReading) -> NetworkStats:
    sums = dict.fromkeys(NetworkStats.__struct_fields__, 0)
    for name, stats in current.interfaces.items():
        path = name.rpartition(":")[0]  # no interface has a colon in its name
        if path and path not in previous.namespaces:
            continue
        before = previous.interfaces.get(name)
        if path and previous.namespaces[path] != current.namespaces.get(path):
            before = None  # another namespace of that path
        anew = before is None or any(getattr(stats, field) < getattr(before, field) for field in sums)
        for field in sums:
            sums[field] += getattr(stats, field) - (0 if anew else getattr(before, field))
    return NetworkStats(**sums)

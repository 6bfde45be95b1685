"""Reads what the whole device does on the network, with psutil.

Owns the looks at the socket tables and interfaces. Refuses to know reports and windows: `monitor.detect.device` makes
those.
"""

from __future__ import annotations

import ipaddress
import socket
from collections import defaultdict
from typing import TYPE_CHECKING

import psutil

from monitor.detect.device import Connection, CpuTime, DeviceReading, NetworkStats, Port

if TYPE_CHECKING:
    from collections.abc import Mapping


def read(*, cpu: bool = False) -> DeviceReading:
    """Read the socket tables and interface counters of this network namespace, once. `cpu`: the processors' time too.

    A UDP socket connected to a peer is no listener. Source: /proc/net/{tcp,tcp6,udp,udp6,dev} and the addresses of the
    interfaces, as psutil gives them. Raises OSError or psutil.Error when /proc cannot be read.
    """
    addresses = _addresses()
    tcp_ports: set[Port] = set()
    udp_ports: set[Port] = set()
    connections: list[Connection] = []
    for row in psutil.net_connections(kind="inet"):
        if not row.laddr:
            continue
        if row.type == socket.SOCK_DGRAM:
            if not row.raddr:
                udp_ports.add(Port(row.laddr.port, _interface(row.laddr.ip, addresses)))
        elif row.status == psutil.CONN_LISTEN:
            tcp_ports.add(Port(row.laddr.port, _interface(row.laddr.ip, addresses)))
        elif row.status == psutil.CONN_ESTABLISHED and row.raddr:
            remote = _plain(row.raddr.ip)
            shown = f"[{remote}]" if ":" in remote else remote
            connections.append(
                Connection(f"{shown}:{row.raddr.port}", row.laddr.port, _interface(row.laddr.ip, addresses))
            )
    return DeviceReading(
        tcp_ports=frozenset(tcp_ports),
        udp_ports=frozenset(udp_ports),
        connections=tuple(connections),
        interfaces={
            name: NetworkStats(
                bytes_in=io.bytes_recv,
                bytes_out=io.bytes_sent,
                packets_in=io.packets_recv,
                packets_out=io.packets_sent,
            )
            # nowrap would keep history in a global of psutil; blocks() judges counters that fell
            for name, io in psutil.net_io_counters(pernic=True, nowrap=False).items()
        },
        cpu=_cpu() if cpu else None,
    )


def _cpu() -> CpuTime:
    """Source: the first line of /proc/stat (proc(5)); time of guests is part of user and nice already."""
    times = psutil.cpu_times()
    all_s = times.user + times.nice + times.system + times.idle + times.iowait + times.irq + times.softirq + times.steal
    return CpuTime(busy_s=all_s - times.idle - times.iowait, all_s=all_s)


def _addresses() -> dict[str, set[str]]:
    """Interfaces by local address; the same link-local address may live on several."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if entry.family in {socket.AF_INET, socket.AF_INET6}:
                found[_plain(entry.address)].add(name)
    return found


def _interface(address: str, addresses: Mapping[str, set[str]]) -> str:
    """Name of the interface with this local address, the wildcard itself, or "" when that is not one interface."""
    plain = _plain(address)
    ip = ipaddress.ip_address(plain)
    if ip.is_unspecified:
        return plain
    # all of 127.0.0.0/8 is local to the loopback interface, whatever addresses it lists
    names = addresses.get(plain) or (addresses.get("127.0.0.1", set()) if ip.is_loopback else set())
    return next(iter(names)) if len(names) == 1 else ""


def _plain(address: str) -> str:
    """Write an address in its one form: no scope, an IPv4 address mapped into IPv6 as IPv4."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return str(mapped or ip)

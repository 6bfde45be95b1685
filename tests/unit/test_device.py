"""Device blocks agree with the kernel's own tables, whatever sockets there are."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
import struct
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.capture.device import read
from monitor.capture.diag import View
from monitor.detect.device import LIST_LIMIT, Connection, DeviceReading, NetworkStats, Port, blocks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from random import Random

    from monitor.engine.device import Link, Look

ESTABLISHED, LISTEN, UNCONNECTED = "01", "0A", "07"  # include/net/tcp_states.h
ANY4, ANY6 = "0.0.0.0", "::"  # noqa: S104 - the wildcards are what is tested
NO_SOCKETS = DeviceReading(interfaces={})


def kernel_rows(table: str) -> list[tuple[str, int, str, int, str]]:
    """(local ip, port, remote ip, port, state) of /proc/net/TABLE, an IPv4 address mapped into IPv6 as IPv4."""
    rows = []
    for line in Path("/proc/net", table).read_text().splitlines()[1:]:
        _, local, remote, state = line.split()[:4]
        rows.append((*kernel_address(local), *kernel_address(remote), state))
    return rows


def kernel_address(text: str) -> tuple[str, int]:
    digits, _, port = text.partition(":")
    words = [int(digits[i : i + 8], 16) for i in range(0, len(digits), 8)]
    ip = ipaddress.ip_address(struct.pack(f"={len(words)}I", *words))
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return str(mapped or ip), int(port, 16)


def kernel_tables() -> tuple[set[int], set[int], list[tuple[str, int]]]:
    """Ports with a TCP listener, with an unconnected UDP socket, and (remote address, local port) of connections."""
    tcp = kernel_rows("tcp") + kernel_rows("tcp6")
    udp = kernel_rows("udp") + kernel_rows("udp6")
    shown = [
        (f"[{remote}]:{remote_port}" if ":" in remote else f"{remote}:{remote_port}", port)
        for _, port, remote, remote_port, state in tcp
        if state == ESTABLISHED
    ]
    return (
        {port for _, port, _, _, state in tcp if state == LISTEN},
        {port for _, port, _, _, state in udp if state == UNCONNECTED},
        sorted(shown),
    )


@contextmanager
def bound(family: int, kind: int, address: str, *, only_six: bool = True) -> Iterator[socket.socket]:
    with socket.socket(family, kind) as made:
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_six)
        made.bind((address, 0))
        if kind == socket.SOCK_STREAM:
            made.listen()
        yield made


def port_of(made: socket.socket) -> int:
    port: int = made.getsockname()[1]
    return port


@pytest.mark.parametrize(
    ("family", "address", "interface"),
    [
        (socket.AF_INET, "127.0.0.1", "lo"),
        (socket.AF_INET, "127.9.8.7", "lo"),
        (socket.AF_INET, ANY4, ANY4),
        (socket.AF_INET6, "::1", "lo"),
        (socket.AF_INET6, ANY6, ANY6),
    ],
)
def test_a_listener_is_reported_with_its_interface(family: int, address: str, interface: str) -> None:
    with bound(family, socket.SOCK_STREAM, address) as tcp, bound(family, socket.SOCK_DGRAM, address) as udp:
        seen = read()
        assert [port for port in seen.tcp_ports if port.port == port_of(tcp)] == [Port(port_of(tcp), interface)]
        assert [port for port in seen.udp_ports if port.port == port_of(udp)] == [Port(port_of(udp), interface)]
        gone = Port(port_of(tcp), interface), Port(port_of(udp), interface)
    after = read()
    assert gone[0] not in after.tcp_ports
    assert gone[1] not in after.udp_ports


def test_a_udp_socket_with_a_peer_is_no_listener() -> None:
    with (
        bound(socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.1") as server,
        bound(socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.1") as client,
    ):
        client.connect(server.getsockname())
        ports = {port.port for port in read().udp_ports}
        assert port_of(server) in ports
        assert port_of(client) not in ports


@pytest.mark.parametrize(
    ("family", "address", "client_family", "client_address", "shown"),
    [
        (socket.AF_INET, "127.0.0.1", socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET6, "::1", socket.AF_INET6, "::1", "[::1]"),
        (socket.AF_INET6, ANY6, socket.AF_INET, "127.0.0.1", "127.0.0.1"),
    ],
)
def test_both_ends_of_a_connection_are_reported(
    family: int, address: str, client_family: int, client_address: str, shown: str
) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(bound(family, socket.SOCK_STREAM, address, only_six=False))
        client = stack.enter_context(socket.socket(client_family, socket.SOCK_STREAM))
        client.connect((client_address, port_of(server)))
        accepted, _ = server.accept()
        stack.enter_context(accepted)
        mine = {port_of(server), port_of(client)}
        assert sorted(row for row in read().connections if row.local_port in mine) == sorted(
            [
                Connection(f"{shown}:{port_of(server)}", port_of(client), "lo"),
                Connection(f"{shown}:{port_of(client)}", port_of(server), "lo"),
            ]
        )
        client.close()
        accepted.close()
        assert not [row for row in read().connections if row.local_port in mine]


def test_the_reading_is_the_kernels_table() -> None:
    with ExitStack() as stack:
        for family, address in ((socket.AF_INET, ANY4), (socket.AF_INET6, ANY6), (socket.AF_INET6, "::1")):
            server = stack.enter_context(bound(family, socket.SOCK_STREAM, address))
            stack.enter_context(bound(family, socket.SOCK_DGRAM, address))
            client = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            client.connect(("127.0.0.1" if family == socket.AF_INET else "::1", port_of(server)))
        # others open sockets, too, some for a moment that only the reading falls into: it has to agree once
        for _ in range(200):
            before, seen, after = kernel_tables(), read(), kernel_tables()
            ours = (
                {port.port for port in seen.tcp_ports},
                {port.port for port in seen.udp_ports},
                sorted((row.remote_addr, row.local_port) for row in seen.connections),
            )
            if before == after == ours:
                break
        else:
            pytest.fail("no reading between two equal tables of the kernel was the same")
        assert blocks(None, seen).connections_total == len(ours[2]) >= 6


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_a_reading_the_kernel_had_no_memory_for_is_begun_anew_over_new_sockets(failures: int) -> None:
    real = View.read
    asked: list[View] = []

    def read_or_fail(view: View, look: Look) -> list[Link]:
        asked.append(view)
        if len(asked) <= failures:
            raise OSError(errno.ENOBUFS, "No buffer space available")
        return real(view, look)

    with mock.patch.object(View, "read", read_or_fail):
        if failures == 3:
            with pytest.raises(OSError, match="No buffer space"):
                read()
        else:
            assert "lo" in read().interfaces
    assert len({id(view) for view in asked}) == min(failures + 1, 3)


def loopback_of_kernel() -> NetworkStats:
    text = Path("/proc/net/dev").read_text()
    found = re.search(r"^\s*lo:\s*(.*)$", text, re.MULTILINE)
    assert found
    cells = [int(cell) for cell in found[1].split()]
    return NetworkStats(bytes_in=cells[0], packets_in=cells[1], bytes_out=cells[8], packets_out=cells[9])


def test_network_stats_are_what_an_interface_grew_by() -> None:
    first = read()
    kernel_before = loopback_of_kernel()
    with (
        bound(socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.1") as server,
        bound(socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.1") as client,
    ):
        for _ in range(10):
            client.sendto(b"x" * 1000, server.getsockname())
            server.recv(2000)
    kernel_after = loopback_of_kernel()
    second = read()
    lo_before, lo_after = first.interfaces["lo"], second.interfaces["lo"]
    assert lo_before.bytes_in <= kernel_before.bytes_in
    assert kernel_before.bytes_in + 10_000 < kernel_after.bytes_in <= lo_after.bytes_in
    growth = blocks(first, second).network_stats
    assert growth is not None
    assert growth.bytes_in >= lo_after.bytes_in - lo_before.bytes_in > 10_000
    assert growth.packets_out >= lo_after.packets_out - lo_before.packets_out >= 10
    assert blocks(None, second).network_stats is None


def stats(value: int) -> NetworkStats:
    return NetworkStats(bytes_in=value, bytes_out=2 * value, packets_in=3 * value, packets_out=4 * value)


@pytest.mark.parametrize(
    ("before", "after", "grew"),
    [
        ({"eth0": 100}, {"eth0": 100}, 0),
        ({"eth0": 100, "lo": 5}, {"eth0": 130, "lo": 6}, 31),
        ({"eth0": 100}, {"eth0": 100, "wg0": 7}, 7),
        ({"eth0": 100, "wg0": 7}, {"eth0": 101}, 1),
        ({"eth0": 100}, {"eth0": 40}, 40),
    ],
    ids=["quiet", "two", "came", "went", "began anew"],
)
def test_growth_is_taken_per_interface(before: dict[str, int], after: dict[str, int], grew: int) -> None:
    first = DeviceReading(interfaces={name: stats(value) for name, value in before.items()})
    second = DeviceReading(interfaces={name: stats(value) for name, value in after.items()})
    assert blocks(first, second).network_stats == stats(grew)


def row_of(entry: Port | Connection) -> bytes:
    """An entry as a reading keeps it (struct kw_device_port, struct kw_device_connection)."""
    if isinstance(entry, Port):
        return struct.pack(">H16s", entry.port, entry.interface.encode())
    address, _, port = entry.remote_addr.rpartition(":")
    ip = ipaddress.ip_address(address.strip("[]"))
    packed = ip.packed if isinstance(ip, ipaddress.IPv6Address) else bytes(10) + b"\xff\xff" + ip.packed
    return packed + struct.pack(">HH16s", int(port), entry.local_port, entry.local_interface.encode())


def rows_of(entries: Iterable[Port | Connection]) -> bytes:
    return b"".join(row_of(entry) for entry in entries)


def reading(connections: Iterable[Connection] = (), ports: Iterable[Port] = ()) -> DeviceReading:
    return DeviceReading(tcp=rows_of(ports), connected=rows_of(connections), interfaces={})


def test_totals_of_cut_lists_stay_true() -> None:
    crowded = DeviceReading(
        tcp=rows_of(Port(port) for port in range(1, 1001)),
        udp=rows_of([Port(5, "lo"), Port(5, "eth0")]),
        connected=rows_of(Connection("10.0.0.1:1", port) for port in range(30, 0, -1)),
        interfaces={},
    )
    made = blocks(NO_SOCKETS, crowded, limit=10)
    assert made.tcp_ports == tuple(Port(port) for port in range(1, 11))
    assert made.connections == tuple(Connection("10.0.0.1:1", port) for port in range(1, 11))
    assert made.udp_ports == (Port(5, "eth0"), Port(5, "lo"))
    assert (made.tcp_ports_total, made.udp_ports_total, made.connections_total) == (1000, 2, 30)


def test_of_a_list_that_is_cut_the_newest_are_kept_then_those_with_the_rarest_peer() -> None:
    old = [Connection("10.0.0.1:443", port) for port in range(1, 500)]
    rare = Connection("192.0.2.9:6667", 7000)
    new = Connection("10.0.0.1:443", 60_000)
    made = blocks(reading([*old, rare]), reading([*old, rare, new]), limit=4)
    assert made.connections == (*old[:2], new, rare)
    assert made.connections_total == 501
    # nothing is known of before: the rarest
    assert blocks(None, reading([*old, rare, new]), limit=2).connections == (old[0], rare)


def test_of_ports_that_are_cut_the_newest_are_kept_then_those_of_fewest_interfaces() -> None:
    common = [Port(port, name) for port in range(1, 300) for name in ("eth0", "lo")]
    rare, new = Port(31337, "eth0"), Port(299, "wg0")
    made = blocks(reading(ports=[*common, rare]), reading(ports=[*common, rare, new]), limit=3)
    assert made.tcp_ports == (common[0], new, rare)
    assert made.tcp_ports_total == 600


addresses = st.one_of(
    st.integers(1, 5).map("10.0.0.{}".format),
    st.sampled_from(["[::1]", "[::]", "[fe80::1]", "[2001:db8::1:0:0:1]", "[::a00:1]"]),
    st.ip_addresses(v=4).map(str),
    st.integers(1 << 48, (1 << 128) - 1).map(lambda number: f"[{ipaddress.IPv6Address(number)}]"),
)
names = st.sampled_from(["", "lo", "eth0", "fifteen-letters"])
connections = st.builds(
    Connection,
    st.builds("{}:{}".format, addresses, st.integers(0, 3) | st.integers(0, 65535)),
    st.integers(1, 9),
    names,
)
ports = st.builds(Port, st.integers(0, 9) | st.integers(0, 65535), names)


@given(st.lists(connections), st.lists(connections), st.integers(0, 20), st.randoms())
def test_connections_that_are_kept_are_the_first_by_newness_rarity_and_order(
    before: list[Connection], now: list[Connection], limit: int, random: Random
) -> None:
    now += random.choices(before, k=len(before)) if before else []
    peers = Counter(one.remote_addr.rpartition(":")[0] for one in now)
    best = sorted(now, key=lambda one: (one in before, peers[one.remote_addr.rpartition(":")[0]], one))
    shuffled = reading(random.sample(now, len(now)))
    assert blocks(reading(before), shuffled, limit=limit).connections == tuple(sorted(best[:limit]))
    assert shuffled.connections == tuple(sorted(now))


@given(st.sets(ports), st.sets(ports), st.integers(0, 20), st.randoms())
def test_ports_that_are_kept_are_the_first_by_newness_rarity_and_order(
    before: set[Port], now: set[Port], limit: int, random: Random
) -> None:
    now |= set(random.sample(sorted(before), len(before) // 2))
    shared = Counter(one.port for one in now)
    best = sorted(now, key=lambda one: (one in before, shared[one.port], one))
    shuffled = reading(ports=random.sample(sorted(now), len(now)))
    assert blocks(reading(ports=before), shuffled, limit=limit).tcp_ports == tuple(sorted(best[:limit]))
    assert shuffled.tcp_ports == tuple(sorted(now))


def test_a_list_of_thousands_is_cut_as_a_short_one() -> None:
    now = [Connection(f"10.{n % 7}.{n % 11}.1:{n}", n % 500) for n in range(5000)]
    known = set(now[1000:])
    peers = Counter(one.remote_addr.rpartition(":")[0] for one in now)
    best = sorted(now, key=lambda one: (one in known, peers[one.remote_addr.rpartition(":")[0]], one))
    made = blocks(reading(known), reading(now))
    assert made.connections == tuple(sorted(best[:LIST_LIMIT]))
    assert made.connections_total == 5000


@pytest.mark.parametrize(
    ("before", "after", "grew"),
    [
        ({}, {"/run/netns/a": 7}, 0),
        ({"/run/netns/a": 0}, {"/run/netns/a": 7}, 130),
        ({"/run/netns/a": 7}, {"/run/netns/a": 7}, 30),
        ({"/run/netns/a": 7}, {"/run/netns/a": 8}, 130),
    ],
    ids=["was not known", "was not there", "the same", "another of that path"],
)
def test_a_namespace_counts_from_where_it_is_known(before: dict[str, int], after: dict[str, int], grew: int) -> None:
    first, second = (
        DeviceReading(
            interfaces={"lo": stats(5)} | {f"{path}:eth0": stats(value) for path, inode in namespaces.items() if inode},
            namespaces=namespaces,
        )
        for namespaces, value in ((before, 100), (after, 130))
    )
    assert blocks(first, second).network_stats == stats(grew)


def test_a_reading_survives_a_restart() -> None:
    now = read()
    assert msgspec.json.decode(msgspec.json.encode(now), type=DeviceReading) == now
    older = msgspec.to_builtins(now)
    del older["namespaces"]
    assert msgspec.convert(older, DeviceReading).namespaces == {}

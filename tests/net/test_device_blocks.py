"""The device-wide blocks are what ss, ip and /proc/net/dev say at the same moment, in every namespace asked for.

As a program it is what runs in a network namespace of its own, where nothing moves unless it moves it:
`python -m tests.net.test_device_blocks SCENE`, which prints what both saw as JSON.
"""

from __future__ import annotations

import ipaddress
import json
import os
import resource
import socket
import subprocess
import sys
import threading
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

import msgspec
import pytest

from monitor.capture import device
from monitor.capture.device import DeviceReader
from monitor.capture.diag import Unavailable, view_of
from monitor.detect.device import LIST_LIMIT, DeviceReading, blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHECKOUT: Final = Path(__file__).resolve().parents[2]
SOCKETS: Final = 5_000
HELD: Final = 50
LOOKS: Final = 150
DEADLINE_S: Final = 120
ANY6: Final = "::"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


# -------- what runs inside --------


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def interfaces() -> None:
    """A loopback, and a pair with addresses of both families."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "kwd0", "type", "veth", "peer", "name", "kwd1")
    run("ip", "address", "add", "10.77.0.1/24", "dev", "kwd0")
    run("ip", "address", "add", "fd77::1/64", "dev", "kwd0", "nodad")
    for name in ("kwd0", "kwd1"):
        run("ip", "link", "set", name, "up")


class Sockets:
    """Everything a scene opens."""

    def __init__(self) -> None:
        self.stack = ExitStack()

    def make(self, address: str, kind: socket.SocketKind, *, dual: bool = False, bound_to: str = "") -> socket.socket:
        """Bind to a free port; listen where that is how one waits."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        made = self.stack.enter_context(socket.socket(family, kind))
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        if bound_to:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, bound_to.encode())
        made.bind((address, 0))
        if kind == socket.SOCK_STREAM:
            made.listen(4096)
        return made

    def connect(self, listener: socket.socket, address: str) -> None:
        """Both ends."""
        self.stack.enter_context(socket.create_connection((address, listener.getsockname()[1])))
        self.stack.enter_context(listener.accept()[0])


def every_kind(sockets: Sockets) -> None:
    """Listeners and datagram sockets of every kind of address, with and without a device, and connections to them."""
    any4 = str(ipaddress.IPv4Address(0))
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        for address in ("127.0.0.1", "127.9.8.7", "10.77.0.1", "::1", "fd77::1", any4, ANY6):
            sockets.make(address, kind)
        for address, name in (("127.0.0.1", "lo"), ("10.77.0.1", "kwd0"), (any4, "kwd1"), (ANY6, "kwd0")):
            sockets.make(address, kind, bound_to=name)
        sockets.make(ANY6, kind, dual=True)
    dual = sockets.make(ANY6, socket.SOCK_STREAM, dual=True)
    for address in ("127.0.0.1", "::1", "10.77.0.1", "fd77::1"):
        sockets.connect(dual, address)
    sockets.connect(sockets.make("127.0.0.1", socket.SOCK_STREAM), "127.0.0.1")
    server = sockets.make("::1", socket.SOCK_DGRAM)
    sockets.make("::1", socket.SOCK_DGRAM).connect(server.getsockname()[:2])


def crowd(sockets: Sockets) -> None:
    """Five thousand sockets, of every kind."""
    every_kind(sockets)
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * SOCKETS, 2 * SOCKETS))
    for address in ("127.0.0.1", "::1"):
        listener = sockets.make(address, socket.SOCK_STREAM)
        for _ in range(SOCKETS * 3 // 20):
            sockets.connect(listener, address)
        for _ in range(SOCKETS // 10):
            sockets.make(address, socket.SOCK_STREAM)
            sockets.make(address, socket.SOCK_DGRAM)


def told(reading: DeviceReading) -> dict[str, Any]:
    return {
        "tcp": sorted([port.port, port.interface] for port in reading.tcp_ports),
        "udp": sorted([port.port, port.interface] for port in reading.udp_ports),
        "connections": sorted([one.remote_addr, one.local_port, one.local_interface] for one in reading.connections),
        "interfaces": {
            name: [stats.bytes_in, stats.packets_in, stats.bytes_out, stats.packets_out]
            for name, stats in reading.interfaces.items()
        },
    }


def scene(name: str) -> dict[str, Any]:
    """What ours and the others tell of one state."""
    interfaces()
    sockets = Sockets()
    with sockets.stack:
        {"every kind": every_kind, "crowd": crowd}[name](sockets)
        reading = device.read()
        with mock.patch.object(device, "read_own", side_effect=Unavailable(2, "a kernel without inet_diag")):
            walked = device.read()
        made = blocks(None, reading)
        return {
            "ours": told(reading),
            "fallback": told(walked),
            "totals": [made.tcp_ports_total, made.udp_ports_total, made.connections_total],
            "lengths": [len(made.tcp_ports), len(made.udp_ports), len(made.connections)],
            "listening": run("ss", "-tulnH"),
            "connected": run("ss", "-tnH"),
            "addresses": json.loads(run("ip", "-j", "address")),
            "counters": Path("/proc/thread-self/net/dev").read_text(),
        }


def storm() -> dict[str, Any]:
    """Look again and again while connections and interfaces come and go."""
    interfaces()
    sockets = Sockets()
    ended = threading.Event()
    churned = [0, 0]

    def connect(listener: socket.socket) -> None:
        while not ended.is_set():
            with socket.create_connection(listener.getsockname()[:2]) as client, listener.accept()[0]:
                # no TIME_WAIT, or ports run out
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
            churned[0] += 1

    def relink() -> None:
        while not ended.is_set():
            run("ip", "link", "add", "kwd-storm", "type", "veth", "peer", "name", "kwd-other")
            run("ip", "link", "delete", "kwd-storm")
            churned[1] += 1

    with sockets.stack:
        quiet, busy = (sockets.make("127.0.0.1", socket.SOCK_STREAM) for _ in range(2))
        for _ in range(HELD):
            sockets.connect(quiet, "127.0.0.1")
        threads = [threading.Thread(target=connect, args=(busy,)), threading.Thread(target=relink)]
        for thread in threads:
            thread.start()
        seen: list[list[Any]] = []
        try:
            while (len(seen) < LOOKS or min(churned) < 10) and all(thread.is_alive() for thread in threads):
                reading = device.read()
                times = Counter((one.remote_addr, one.local_port) for one in reading.connections)
                port = quiet.getsockname()[1]
                seen.append(
                    [
                        sum(one.local_port == port for one in reading.connections),
                        sum(one.remote_addr.endswith(f":{port}") for one in reading.connections),
                        max(times.values()),
                        sorted(entry.port for entry in reading.tcp_ports),
                        {"lo", "kwd0", "kwd1"} <= reading.interfaces.keys(),
                    ]
                )
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        return {"seen": seen, "ports": sorted(one.getsockname()[1] for one in (quiet, busy)), "churned": churned}


# -------- the facts --------


def inside(name: str) -> dict[str, Any]:
    command = ["unshare", "--net", sys.executable, "-m", "tests.net.test_device_blocks", name]
    ran = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=DEADLINE_S)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def split(end: str) -> tuple[str, str, int]:
    """Address, device and port of an end as ss writes it."""
    address, _, port = end.rpartition(":")
    address, _, name = address.partition("%")
    plain = address.strip("[]") if address != "*" else ANY6
    ip = ipaddress.ip_address(plain)
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    # [::]%name is written as [::]%name, *%name as *%name
    return str(mapped or ip), name.strip("[]"), int(port)


def places(addresses: list[dict[str, Any]]) -> Callable[[str, str], str]:
    """Where a local address is, by what `ip address` says."""
    by_address = {
        str(ipaddress.ip_address(one["local"])): link["ifname"] for link in addresses for one in link["addr_info"]
    }

    def place(address: str, name: str) -> str:
        ip = ipaddress.ip_address(address)
        if name or ip.is_unspecified:
            return name or address
        return "lo" if ip.is_loopback else by_address[address]

    return place


@pytest.mark.parametrize("name", ["every kind", "crowd"])
def test_listeners_connections_and_counters_are_those_of_ss_and_proc(name: str) -> None:
    found = inside(name)
    place = places(found["addresses"])
    listening: dict[str, set[tuple[int, str]]] = {"tcp": set(), "udp": set()}
    sockets = 0
    for line in found["listening"].splitlines():
        protocol, _, _, _, local, *_ = line.split()
        address, bound, port = split(local)
        listening[protocol].add((port, place(address, bound)))
        sockets += 1
    connected = []
    for line in found["connected"].splitlines():
        state, _, _, local, remote, *_ = line.split()
        assert state == "ESTAB", "nothing opens or closes here"
        address, bound, port = split(local)
        peer, _, peer_port = split(remote)
        shown = f"[{peer}]" if ":" in peer else peer
        connected.append([f"{shown}:{peer_port}", port, place(address, bound)])
        sockets += 1
    assert sockets >= (SOCKETS if name == "crowd" else 20)
    ours = found["ours"]
    assert {(port, where) for port, where in ours["tcp"]} == listening["tcp"]
    assert {(port, where) for port, where in ours["udp"]} == listening["udp"]
    assert ours["connections"] == sorted(connected)
    assert found["totals"] == [len(listening["tcp"]), len(listening["udp"]), len(connected)]
    assert found["lengths"] == [min(LIST_LIMIT, total) for total in found["totals"]]
    counters = {}
    for line in found["counters"].splitlines()[2:]:
        label, _, cells = line.partition(":")
        numbers = [int(cell) for cell in cells.split()]
        counters[label.strip()] = [numbers[0], numbers[1], numbers[8], numbers[9]]
    assert ours["interfaces"].keys() == counters.keys() >= {"lo", "kwd0", "kwd1"}
    assert ours["interfaces"]["lo"] == counters["lo"], "ss and ip send nothing over it"
    assert all(
        mine <= later for key in counters for mine, later in zip(ours["interfaces"][key], counters[key], strict=True)
    )


@pytest.mark.parametrize("name", ["every kind", "crowd"])
def test_without_inet_diag_proc_tells_the_same_but_the_devices_that_sockets_are_bound_to(name: str) -> None:
    found = inside(name)
    ours, walked = found["ours"], found["fallback"]
    assert walked["connections"] == ours["connections"]
    assert walked["interfaces"].keys() == ours["interfaces"].keys()
    for block in ("tcp", "udp"):
        assert [port for port, _ in walked[block]] == [port for port, _ in ours[block]]
        differ = {where for port, where in ours[block] if [port, where] not in walked[block]}
        assert differ == {"kwd0", "kwd1"}


def test_a_storm_of_connections_and_interfaces_neither_hides_nor_doubles_what_stays() -> None:
    found = inside("storm")
    assert min(found["churned"]) >= 10
    for accepted, clients, most, ports, links in found["seen"]:
        assert (accepted, clients) == (HELD, HELD)
        assert most == 1
        assert ports == found["ports"]
        assert links


@contextmanager
def namespace(suffix: str) -> Iterator[str]:
    """A network namespace by name; its path."""
    name = f"kwd-{os.getpid()}-{suffix}"
    run("ip", "netns", "add", name)
    try:
        run("nsenter", f"--net=/run/netns/{name}", "ip", "link", "set", "lo", "up")
        yield f"/run/netns/{name}"
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


HOLDER: Final = """
import socket, sys
tcp = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(tcp.getsockname())
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.bind(("::1", 0))
print(tcp.getsockname()[1], udp.getsockname()[1], client.getsockname()[1], flush=True)
for line in sys.stdin:
    sent = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(bytes(int(line)), udp.getsockname())
    print(sent, flush=True)
"""


@contextmanager
def holder(path: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A process in a namespace with a TCP listener, a UDP socket and a client: their ports."""
    command = ["nsenter", f"--net={path}", sys.executable, "-c", HOLDER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, [int(word) for word in process.stdout.readline().split()]
        finally:
            process.kill()


def send(process: subprocess.Popen[str], size: int) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{size}\n")
    process.stdin.flush()
    assert int(process.stdout.readline()) == size


def test_sockets_and_traffic_of_the_namespaces_asked_for_are_read_too() -> None:
    with namespace("a") as one, namespace("b") as other, holder(one) as (process, ports), holder(other) as (_, unasked):
        reader = DeviceReader(namespaces=[one, f"/proc/{process.pid}/ns/net"])
        first = reader.read()
        send(process, 1000)
        second = reader.read()
        alone = device.read()
        tcp, udp, client = ports
        found = (
            {(port.port, port.interface) for port in second.tcp_ports},
            {(p.port, p.interface) for p in second.udp_ports},
        )
        assert (tcp, "lo") in found[0]
        assert (udp, "lo") in found[1]
        mine = [one for one in second.connections if one.local_port in {tcp, client}]
        assert {one.remote_addr for one in mine} >= {f"127.0.0.1:{tcp}", f"127.0.0.1:{client}"}
        assert unasked[0] not in {port.port for port in second.tcp_ports} - {port.port for port in alone.tcp_ports}
        # two paths of one namespace are one namespace
        own = set(alone.interfaces)
        assert {name for name in second.interfaces if name not in own} == {f"{one}:lo"}
        before, after = first.interfaces[f"{one}:lo"], second.interfaces[f"{one}:lo"]
        assert (after.packets_in - before.packets_in, after.bytes_in - before.bytes_in) == (1, 1000 + 48)
        assert not any(name.startswith(one) for name in alone.interfaces)
        # the looks did not move us
        assert os.stat("/proc/thread-self/ns/net").st_ino == os.stat("/proc/self/ns/net").st_ino  # noqa: PTH116
        assert second.namespaces[one] == Path(one).stat().st_ino


def test_a_namespace_that_is_gone_is_said_once_and_counts_from_zero_when_it_comes_back() -> None:
    said: list[str] = []
    with namespace("c") as path, holder(path) as (process, _):
        reader = DeviceReader(namespaces=[path], say=said.append)
        send(process, 5000)
        assert f"{path}:lo" in reader.read().interfaces
    gone = [reader.read() for _ in range(3)]
    assert said == [
        f"report.namespaces: {path} is left out of reports until it can be read (No such file or directory)"
    ]
    assert all(path not in name for reading in gone for name in reading.interfaces)
    with namespace("c") as path, holder(path) as (process, _):
        send(process, 700)
        back = reader.read()
        lo = back.interfaces[f"{path}:lo"]
        assert lo.bytes_in >= 700
        before = msgspec.structs.replace(gone[-1], interfaces={})
        growth = blocks(before, msgspec.structs.replace(back, interfaces={f"{path}:lo": lo})).network_stats
        assert growth == lo
    assert len(said) == 1
    reader.read()
    assert len(said) == 2


@pytest.mark.parametrize("path", ["/proc/self/ns/uts", "/dev/null"])
def test_what_is_no_network_namespace_is_said(path: str) -> None:
    (text,) = device.notes([path])
    assert path in text
    assert "not a network namespace" in text
    with pytest.raises(OSError, match="not a network namespace"):
        view_of(path)


@pytest.mark.parametrize(("name", "taken"), [("ab", True), ("a:b", False)])
def test_interface_names_have_no_colon(name: str, taken: bool) -> None:  # noqa: FBT001 - a column of the table
    """What tells a namespace's path from an interface's name."""
    command = ["unshare", "--net", "ip", "link", "add", name, "type", "veth", "peer", "name", "other"]
    assert (subprocess.run(command, check=False, capture_output=True).returncode == 0) == taken


if __name__ == "__main__":
    print(json.dumps(storm() if sys.argv[1] == "storm" else scene(sys.argv[1])))

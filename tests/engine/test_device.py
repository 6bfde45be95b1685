"""Netlink dumps are read whole, however the kernel cuts them, and again when a change tore them."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.engine._native import ffi, lib
from monitor.engine.device import Link, Look, cut_connections, cut_ports

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# include/uapi/linux/netlink.h, inet_diag.h, rtnetlink.h, if_link.h, if_addr.h; include/net/tcp_states.h
DONE, ERROR, MULTI, INTERRUPTED = 3, 2, 2, 0x10
BY_FAMILY, TCP, NEW_LINK, NEW_ADDRESS = 20, 18, 16, 20
NAME, STATS64, ADDRESS, LOCAL = 3, 23, 1, 2
ESTABLISHED, CLOSE, LISTEN = 1, 7, 10
INET, INET6 = int(socket.AF_INET), int(socket.AF_INET6)
BUFFER_BYTES: Final = 1 << 18


def message(kind: int, body: bytes, flags: int = MULTI) -> bytes:
    """One message, padded as the kernel does (struct nlmsghdr)."""
    size = 16 + len(body)
    return (struct.pack("=IHHII", size, kind, flags, 1, 0) + body).ljust(-(-size // 4) * 4, b"\0")


def end(code: int = 0, flags: int = MULTI) -> bytes:
    return message(DONE, struct.pack("=i", code), flags)


@dataclass(frozen=True)
class Row:
    """A socket as the kernel knows it."""

    family: int
    port: int
    remote_port: int
    local: bytes
    remote: bytes
    bound: int = 0
    state: int = ESTABLISHED

    def told(self, kind: int = TCP, attributes: bytes = b"", flags: int = MULTI) -> bytes:
        """As the kernel tells of it (struct inet_diag_msg)."""
        ids = struct.pack(">HH16s16s", self.port, self.remote_port, self.local, self.remote)
        head = struct.pack("=BBBB", self.family, self.state, 0, 0)
        return message(kind, head + ids + struct.pack("=I8x20x", self.bound) + attributes, flags)

    @property
    def shown(self) -> tuple[str, int, str]:
        """As a report shows it where no interface has an address."""
        ip = self._ip(self.remote)
        shown = f"[{ip}]" if ip.version == 6 else str(ip)
        local = self._ip(self.local)
        return f"{shown}:{self.remote_port}", self.port, str(local) if local.is_unspecified else ""

    def _ip(self, address: bytes) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        if self.family == INET:
            return ipaddress.IPv4Address(address[:4])
        ip = ipaddress.IPv6Address(address)
        return ip.ipv4_mapped or ip


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value.ljust(-(-len(value) // 4) * 4, b"\0")


def link(index: int, name: bytes, counters: Sequence[int] = (1, 2, 3, 4)) -> bytes:
    stats = struct.pack("=4Q", *counters) + bytes(160)
    return message(NEW_LINK, struct.pack("=4xi8x", index) + attribute(NAME, name + b"\0") + attribute(STATS64, stats))


def address(index: int, family: int, *values: tuple[int, bytes]) -> bytes:
    tail = b"".join(attribute(kind, value) for kind, value in values)
    return message(NEW_ADDRESS, struct.pack("=B3xI", family, index) + tail)


@dataclass
class Kernel:
    """The other end of a netlink socket: answers requests of each kind with the next of its dumps, lists of datagrams.

    Of kinds that it knows nothing of it has nothing.
    """

    dumps: Mapping[tuple[int, int], Sequence[Sequence[bytes]]]
    """By the type of the request, and the family where a request names one that matters (UDP), else 0."""
    asked: list[tuple[int, int]] = field(default_factory=list)

    def __enter__(self) -> Self:
        """Begin to answer."""
        self._stack = ExitStack()
        self.ours, theirs = (
            self._stack.enter_context(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        )
        for one in (self.ours, theirs):
            one.setsockopt(socket.SOL_SOCKET, 32, 4 * BUFFER_BYTES)  # SO_SNDBUFFORCE
        thread = threading.Thread(target=self._answer, args=(theirs,))
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(self.ours.shutdown, socket.SHUT_RDWR)
        return self

    def __exit__(self, *exception: object) -> None:
        """Hang up."""
        self._stack.close()

    def _answer(self, theirs: socket.socket) -> None:
        while request := theirs.recv(4096):
            kind = struct.unpack_from("=IH", request)[1]
            key = (kind, request[16] if kind == BY_FAMILY else 0)
            dumps = self.dumps.get(key, [[end()]])
            for datagram in dumps[min(self.asked.count(key), len(dumps) - 1)]:
                try:
                    theirs.send(datagram)
                except BrokenPipeError:  # a reader that refused what came before
                    return
            self.asked.append(key)


def read(sockets: Kernel, links: Kernel | None = None) -> tuple[list[tuple[str, int, str]], Look, list[Link]]:
    """The connections in order; the look, for more, is the caller's."""
    look = Look()
    with sockets:
        look.read_sockets(sockets.ours.fileno())
    if links is not None:
        with links:
            look.read_links(links.ours.fileno())
    told = look.settle()
    rows = look.found().connections
    return cut_connections(b"", rows, len(rows)), look, told


addresses = st.binary(min_size=16, max_size=16) | st.just(bytes(16)) | st.just(bytes(10) + b"\xff\xff\1\2\3\4")
rows = st.builds(
    Row, st.sampled_from([INET, INET6]), *(st.integers(0, 65535),) * 2, addresses, addresses, st.integers(0, 3)
)
ONE = Row(INET, 80, 50_000, bytes(range(16)), b"\1\2\3\4" + bytes(12))
OTHER = Row(INET6, 443, 50_001, bytes(range(16)), bytes(15) + b"\1")


@given(st.lists(st.lists(st.tuples(rows, st.integers(0, 40)))), st.booleans())
def test_every_socket_is_found_once_whatever_the_lengths_of_messages(
    datagrams: list[list[tuple[Row, int]]],
    end_apart: bool,  # noqa: FBT001 - drawn
) -> None:
    sent = [b"".join(row.told(attributes=bytes(extra)) for row, extra in one) for one in datagrams]
    sent = [one for one in sent if one]
    if end_apart or not sent:
        sent.append(end())
    else:
        sent[-1] += end()
    distinct = {
        # of IPv4 the kernel's other twelve bytes say nothing
        (row.family, row.port, row.remote_port, row.local[: width(row)], row.remote[: width(row)], row.bound): row
        for one in datagrams
        for row, _ in one
    }
    assert read(Kernel({(TCP, 0): [sent]}))[0] == sorted(row.shown for row in distinct.values())


def width(row: Row) -> int:
    return 4 if row.family == INET else 16


def test_listeners_and_datagram_sockets_are_told_apart_by_their_state() -> None:
    def of(family: int, port: int, state: int) -> Row:
        return Row(family, port, 0, bytes(16), bytes(16), state=state)

    tcp = [of(INET, 22, LISTEN), of(INET6, 22, LISTEN), of(INET, 22, LISTEN), of(INET, 9, CLOSE), ONE]
    udp = {
        INET: [of(INET, 53, CLOSE), of(INET, 54, ESTABLISHED)],
        INET6: [of(INET6, 53, CLOSE), of(INET6, 55, LISTEN), of(17, 56, CLOSE)],
    }
    kernel = Kernel(
        {(TCP, 0): [[b"".join(row.told() for row in tcp), end()]]}
        | {(BY_FAMILY, family): [[*(row.told(BY_FAMILY) for row in of), end()]] for family, of in udp.items()}
    )
    connections, look, _ = read(kernel)
    found = look.found()
    assert connections == [ONE.shown]
    assert cut_ports(b"", found.tcp, 9) == [(22, str(ipaddress.IPv4Address(0))), (22, "::")]
    assert cut_ports(b"", found.udp, 9) == [(53, str(ipaddress.IPv4Address(0))), (53, "::")]


def test_an_interface_is_known_by_the_device_a_socket_is_bound_to_or_by_its_only_address() -> None:
    link_local = bytes.fromhex("fe80") + bytes(13) + b"\5"
    kernel = Kernel(
        {
            (NEW_LINK + 2, 0): [
                [
                    link(1, b"lo", (5, 6, 7, 8)) + link(2, b"eth0"),
                    link(3, b"fifteen-letters") + link(4, b"od\xffd") + end(),
                ]
            ],
            (NEW_ADDRESS + 2, 0): [
                [
                    address(1, INET, (ADDRESS, b"\x7f\0\0\1")),
                    address(2, INET, (ADDRESS, b"\x0a\0\0\1"), (LOCAL, b"\x0a\0\0\2"))
                    + address(2, INET6, (ADDRESS, link_local))
                    + address(3, INET6, (ADDRESS, link_local))
                    + address(99, INET, (ADDRESS, b"\x0a\0\0\3"))
                    + address(2, INET, (LOCAL, link_local)),
                    address(4, INET6, (ADDRESS, OTHER.local)) + end(),
                ]
            ],
        }
    )
    local = {
        1: (INET, b"\x7f\x09\x08\x07", 0, "lo"),
        2: (INET, b"\x0a\0\0\2", 0, "eth0"),
        3: (INET, b"\x0a\0\0\1", 0, ""),
        4: (INET6, link_local, 0, ""),
        5: (INET6, link_local, 3, "fifteen-letters"),
        6: (INET6, bytes(10) + b"\xff\xff\x0a\0\0\2", 0, "eth0"),
        7: (INET, b"\x0a\0\0\3", 99, ""),
        8: (INET6, OTHER.local, 0, "od\\xffd"),
        9: (INET, bytes(4), 2, "eth0"),
    }
    told = [
        Row(family, port, 1, bytes_.ljust(16, b"\0"), bytes(16), bound).told()
        for port, (family, bytes_, bound, _) in local.items()
    ]
    connections, look, links = read(Kernel({(TCP, 0): [[*told, end()]]}), kernel)
    assert {port: name for _, port, name in connections} == {port: name for port, (*_, name) in local.items()}
    assert links[0] == Link(1, "lo", packets_in=5, packets_out=6, bytes_in=7, bytes_out=8)
    assert [one.name for one in links[1:]] == ["eth0", "fifteen-letters", "od\\xffd"]
    # another namespace has its own, and what was found stays
    with Kernel({}) as nothing:
        look.read_sockets(nothing.ours.fileno())
        look.read_links(nothing.ours.fileno())
    assert look.settle() == []
    assert len(cut_connections(b"", look.found().connections, 99)) == len(local)


@pytest.mark.parametrize("where", ["message", "end"])
@pytest.mark.parametrize("key", [(TCP, 0), (BY_FAMILY, INET), (BY_FAMILY, INET6)])
def test_dumps_that_a_change_tore_are_read_again(where: str, key: tuple[int, int]) -> None:
    torn = Row(INET, 1, 1, bytes(16), bytes(16)).told(key[0], flags=MULTI | (INTERRUPTED if where == "message" else 0))
    kernel = Kernel(
        {(TCP, 0): [[end()], [OTHER.told(), end()]]}
        | {key: [[torn, end(flags=MULTI | (INTERRUPTED if where == "end" else 0))], [OTHER.told(key[0]), end()]]}
    )
    assert read(kernel)[0] == [OTHER.shown]
    assert kernel.asked == [(TCP, 0), (BY_FAMILY, INET), (BY_FAMILY, INET6)] * 2


def test_of_dumps_that_are_always_torn_the_last_is_taken() -> None:
    kernel = Kernel({(TCP, 0): [[ONE.told(), end(flags=MULTI | INTERRUPTED)]]})
    assert read(kernel)[0] == [ONE.shown]
    assert 2 < len(kernel.asked) < 100


@pytest.mark.parametrize(
    "answer", [end(-errno.ENOENT), message(ERROR, struct.pack("=i", -errno.ENOENT) + bytes(16), 0)]
)
@pytest.mark.parametrize("before", [[], [ONE.told()]], ids=["alone", "behind a socket"])
def test_an_error_is_raised_wherever_it_stands_and_nothing_is_kept(answer: bytes, before: list[bytes]) -> None:
    with Look() as look:
        with Kernel({(BY_FAMILY, INET6): [[*before, answer]]}) as kernel, pytest.raises(FileNotFoundError):
            look.read_sockets(kernel.ours.fileno())
        look.settle()
        assert look.found() == (b"", b"", b"")


@pytest.mark.parametrize(
    "datagram",
    [
        ONE.told()[:-4],
        struct.pack("=IHHII", 4, TCP, MULTI, 1, 0),
        message(TCP, bytes(40)),
        bytes(BUFFER_BYTES + 4),
        b"x",
    ],
    ids=["cut", "shorter than its header", "shorter than a socket", "longer than the buffer", "no header"],
)
def test_what_is_no_answer_is_refused(datagram: bytes) -> None:
    refused = pytest.raises(OSError, match="netlink message")
    with Kernel({(TCP, 0): [[datagram, end()]]}) as kernel, Look() as look, refused:
        look.read_sockets(kernel.ours.fileno())


def test_a_kernel_that_is_silent_is_not_waited_for_without_end() -> None:
    with Kernel({(TCP, 0): [[]]}) as kernel, Look() as look:
        kernel.ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, 1000))
        with pytest.raises(TimeoutError):
            look.read_sockets(kernel.ours.fileno())


DUMPS: Final = (lib.KW_DUMP_TCP, lib.KW_DUMP_UDP4, lib.KW_DUMP_LINKS, lib.KW_DUMP_ADDRESSES)
KINDS: Final = (TCP, BY_FAMILY, NEW_LINK, DONE, ERROR)
hostile = st.binary(max_size=80) | st.builds(
    lambda kind, body, cut, more: message(kind, body)[: -cut or None] + more,
    st.sampled_from(KINDS),
    st.binary(max_size=120),
    st.integers(0, 5),
    st.binary(max_size=8),
)


@given(st.lists(st.tuples(st.sampled_from(DUMPS), st.lists(hostile, max_size=4).map(b"".join))))
def test_hostile_messages_do_no_harm(fed: list[tuple[int, bytes]]) -> None:
    """Beyond what the sanitizers see: a state or an error, and rows that can be shown."""
    device = ffi.gc(lib.kw_device_new(1), lib.kw_device_free)
    for dump, data in fed:
        assert -4096 < lib.kw_device_feed(device, dump, data, len(data)) <= 3
    assert lib.kw_device_settle(device) == 0


@given(st.binary(max_size=200), st.binary(max_size=200), st.integers(0, 9))
def test_rows_of_any_bytes_can_be_cut(before: bytes, now: bytes, limit: int) -> None:
    """They come back from a file after a restart."""
    assert len(cut_ports(before, now, limit)) == min(limit, len(now) // 18)
    assert len(cut_connections(before, now, limit)) == min(limit, len(now) // 36)

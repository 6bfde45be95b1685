"""Sockets of kin: who owns them, what their lines say, which remotes and ports belong to a window."""

# ruff: noqa: ANN401 - the fields of a record have every type
from __future__ import annotations

import errno
import socket
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from monitor.engine import Engine, lines
from monitor.engine._native import lib
from monitor.engine.records import Endpoint, ProcessId, dns_record, exit_record, socket_record, sync_record
from monitor.errors import EngineRefused
from monitor.remote import Remote

if TYPE_CHECKING:
    from tests.engine.conftest import Tools

OWNER = ProcessId(500, 7 * 10**9)
LOCAL = Endpoint(IPv4Address("192.0.2.1"), 40000)
REMOTE = Endpoint(IPv4Address("198.51.100.7"), 443)
HTTP = Endpoint(IPv4Address(0), 80)
UDP: dict[str, Any] = {"protocol": socket.IPPROTO_UDP, "type": socket.SOCK_DGRAM}
TCP_ESTABLISHED, TCP_SYN_SENT, TCP_LISTEN = 1, 2, 10


def _record(event: int, cookie: int = 1, *, watches: int = 1, **fields: Any) -> bytes:
    full: dict[str, Any] = {"time_ns": 9 * 10**9, "process": OWNER, "local": LOCAL} | fields
    return socket_record(event=event, cookie=cookie, watches=watches, **full)


def _connected(cookie: int = 1, remote: Endpoint = REMOTE, **fields: Any) -> bytes:
    return _record(lib.KW_SOCKET_CONNECTED, cookie, remote=remote, **fields)


def _closed(cookie: int = 1, remote: Endpoint = REMOTE, **fields: Any) -> bytes:
    return _record(lib.KW_SOCKET_CLOSED, cookie, remote=remote, **fields)


def _told(engine: Engine, tools: type[Tools], records: bytes) -> list[lines.Line]:
    engine.ingest(records)
    assert engine.losses()["bad_record"] == 0
    return tools.told(engine)


def test_a_connection_is_told_when_it_stands_and_when_it_is_over(engine: Engine, tools: type[Tools]) -> None:
    begins = _record(lib.KW_SOCKET_CONNECTING, remote=REMOTE)
    told = _told(engine, tools, begins + _connected() + _closed(bytes_in=2**40, bytes_out=3))
    common = {
        "time": "1970-01-01T00:00:09.000000000Z",
        "watch": "one",
        "pid": OWNER.pid,
        "process_id": str(OWNER),
        "connection_id": "1",
        "protocol": "tcp",
        "family": "ipv4",
        "local": "192.0.2.1:40000",
        "remote": "198.51.100.7:443",
    }
    assert told == [lines.Connect(**common), lines.Close(bytes_in=2**40, bytes_out=3, **common)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (errno.ECONNREFUSED, "ECONNREFUSED"),
        (errno.ETIMEDOUT, "ETIMEDOUT"),
        (errno.EHOSTUNREACH, "EHOSTUNREACH"),
        (errno.ECONNRESET, "ECONNRESET"),
        (4000, "4000"),
    ],
)
def test_a_failed_connection_says_why_and_is_not_open(
    engine: Engine, tools: type[Tools], number: int, word: str
) -> None:
    (line,) = _told(engine, tools, _connected(result=number))
    assert isinstance(line, lines.Connect)
    assert line.result == word
    mark = engine.mark()
    assert engine.remotes(0, mark) == ((), 0)
    assert [remote.address for remote in engine.remotes(0, 0)[0]] == ["198.51.100.7"]


def test_an_accepted_connection_names_the_remote_and_our_port(engine: Engine, tools: type[Tools]) -> None:
    ours = Endpoint(IPv4Address("192.0.2.1"), 80)
    (line,) = _told(engine, tools, _record(lib.KW_SOCKET_ACCEPTED, local=ours, remote=REMOTE))
    assert isinstance(line, lines.Accept)
    assert (line.local, line.remote) == ("192.0.2.1:80", "198.51.100.7:443")
    assert engine.remotes(0, 0) == ((Remote(address="198.51.100.7", port=80, protocol="tcp", incoming=True),), 0)


def test_a_listener_has_neither_remote_nor_bytes(engine: Engine, tools: type[Tools]) -> None:
    told = _told(
        engine, tools, _record(lib.KW_SOCKET_LISTENING, local=HTTP) + _record(lib.KW_SOCKET_CLOSED, local=HTTP)
    )
    assert [type(line) for line in told] == [lines.Listen, lines.Close]
    for line in told:
        assert isinstance(line, lines.Connection)
        assert line.local == "0.0.0.0:80"
        assert (line.remote, line.bytes_in, line.bytes_out) == (UNSET, UNSET, UNSET)


def test_an_ipv6_socket_that_talks_ipv4_is_told_as_ipv4(engine: Engine, tools: type[Tools]) -> None:
    (line,) = _told(engine, tools, _connected(family=socket.AF_INET6))
    assert isinstance(line, lines.Connect)
    assert (line.family, line.local, line.remote) == ("ipv4", "192.0.2.1:40000", "198.51.100.7:443")
    _told(engine, tools, _connected(2))
    assert len(engine.remotes(0, 0)[0]) == 1


@given(number=st.integers(0, 2**128 - 1) | st.integers(0, 2**32 - 1) | st.sampled_from([2**112, 1, 2**127 + 1]))
@settings(deadline=None)
def test_ipv6_is_written_as_rfc_5952_has_it(tools: type[Tools], number: int) -> None:
    address = IPv6Address(number)
    with Engine(1) as engine:
        engine.watch(0, "one", None)
        told = _told(engine, tools, _connected(remote=Endpoint(address, 1), local=HTTP, family=socket.AF_INET6))
        (line,) = told
        assert isinstance(line, lines.Connect)
        mapped = address.ipv4_mapped
        assert line.remote == (f"{mapped}:1" if mapped else f"[{address}]:1")
        assert engine.remotes(0, 0)[0][0].address == str(mapped or address)


def test_each_watch_of_the_owner_has_its_own_line(engine: Engine, tools: type[Tools]) -> None:
    told = _told(engine, tools, _connected(watches=0b11))
    assert [line.watch for line in told if isinstance(line, lines.Connect)] == ["one", "two"]
    assert len(engine.remotes(1, 0)[0]) == 1


def test_a_socket_outlives_its_owner(engine: Engine, tools: type[Tools]) -> None:
    engine.ingest(_connected() + exit_record(time_ns=10**10, process=OWNER, watches=1, comm=b"x"))
    mark = engine.mark()
    assert len(engine.remotes(0, mark)[0]) == 1
    engine.take()
    (line,) = _told(engine, tools, _closed())
    assert isinstance(line, lines.Close)
    assert line.process_id == str(OWNER)


def test_a_datagram_socket_without_a_peer_goes_with_its_owner_and_a_bound_one_stays(engine: Engine) -> None:
    bound = _record(lib.KW_SOCKET_LISTENING, 2, local=Endpoint(IPv4Address(0), 53), **UDP)
    engine.ingest(_record(lib.KW_SOCKET_PEER, 1, remote=REMOTE, **UDP) + bound)
    mark = engine.mark()
    assert len(engine.remotes(0, mark)[0]) == 1
    engine.ingest(exit_record(time_ns=10**10, process=OWNER, watches=1, comm=b"x"))
    assert engine.remotes(0, engine.mark()) == ((), 0)
    assert engine.listening(0, engine.mark()) == ((("udp", 53),), 0)


def test_a_datagram_socket_that_gets_a_peer_listens_no_more(engine: Engine) -> None:
    engine.ingest(_record(lib.KW_SOCKET_LISTENING, local=LOCAL, **UDP) + _connected(**UDP))
    assert engine.listening(0, engine.mark()) == ((), 0)
    assert engine.listening(0, 0) == ((("udp", 40000),), 0)
    assert engine.remotes(0, engine.mark())[0] == (Remote("198.51.100.7", 443, "udp", incoming=False),)


def test_a_peer_of_a_datagram_socket_is_told(engine: Engine, tools: type[Tools]) -> None:
    (line,) = _told(engine, tools, _record(lib.KW_SOCKET_PEER, remote=REMOTE, **UDP))
    assert isinstance(line, lines.Peer)
    assert (line.protocol, line.remote) == ("udp", "198.51.100.7:443")


def test_what_was_there_before_is_told_once_as_what_it_is(engine: Engine, tools: type[Tools]) -> None:
    listens = _record(lib.KW_SOCKET_LIVE, 1, local=HTTP, state=TCP_LISTEN)
    served = _record(lib.KW_SOCKET_LIVE, 2, local=HTTP, remote=REMOTE, state=TCP_ESTABLISHED)
    ours = _record(lib.KW_SOCKET_LIVE, 3, remote=REMOTE, state=TCP_ESTABLISHED)
    begins = _record(lib.KW_SOCKET_LIVE, 4, remote=REMOTE, state=TCP_SYN_SENT)
    told = _told(engine, tools, listens + served + ours + begins)
    assert [type(line) for line in told] == [lines.Listen, lines.Accept, lines.Connect]
    assert all(isinstance(line, lines.Connection) and line.cause == "running" for line in told)
    assert _told(engine, tools, listens + served + ours) == []
    assert [type(line) for line in _told(engine, tools, _record(lib.KW_SOCKET_LIVE, 3, remote=REMOTE, watches=2))] == [
        lines.Connect
    ]
    assert {(remote.port, remote.incoming) for remote in engine.remotes(0, 0)[0]} == {(80, True), (443, False)}


def test_what_an_earlier_daemon_told_is_known_without_a_line(engine: Engine, tools: type[Tools]) -> None:
    told = lib.KW_LIVE_TOLD
    listens = _record(lib.KW_SOCKET_LIVE, 1, local=HTTP, state=TCP_LISTEN, result=told)
    served = _record(
        lib.KW_SOCKET_LIVE,
        2,
        local=LOCAL,
        remote=REMOTE,
        state=TCP_ESTABLISHED,
        result=told | lib.KW_LIVE_INCOMING,
    )
    assert _told(engine, tools, listens + served) == []
    assert engine.listening(0, 0)[0] == (("tcp", 80),)
    assert {(remote.port, remote.incoming) for remote in engine.remotes(0, 0)[0]} == {(LOCAL.port, True)}
    assert [type(line) for line in _told(engine, tools, _closed(2, local=LOCAL))] == [lines.Close]


def test_what_a_sync_does_not_tell_of_is_closed(engine: Engine, tools: type[Tools]) -> None:
    """But for a datagram socket's peers, which nobody tells again."""
    peer = Endpoint(IPv4Address("198.51.100.9"), 53)
    listens = _record(lib.KW_SOCKET_LISTENING, 1, local=HTTP)
    _told(engine, tools, listens + _connected(2) + _record(lib.KW_SOCKET_PEER, 3, remote=peer, **UDP))
    begins, ends = (sync_record(phase=phase, time_ns=9 * 10**9) for phase in (3, 4))
    told = _told(engine, tools, begins + _record(lib.KW_SOCKET_LIVE, 1, local=HTTP, state=TCP_LISTEN) + ends)
    assert told == []
    mark = engine.mark()
    assert engine.listening(0, mark)[0] == (("tcp", 80),)
    assert [remote.port for remote in engine.remotes(0, mark)[0]] == [53]
    found = _record(lib.KW_SOCKET_LIVE, 4, remote=REMOTE, state=TCP_ESTABLISHED)
    assert [type(line) for line in _told(engine, tools, begins + found + ends)] == [lines.Connect]
    assert engine.listening(0, engine.mark())[0] == ()


def test_a_bound_datagram_socket_that_a_sync_does_not_tell_of_is_closed_with_its_peers(
    engine: Engine, tools: type[Tools]
) -> None:
    bound = _record(lib.KW_SOCKET_LISTENING, 1, local=HTTP, **UDP)
    _told(engine, tools, bound + _record(lib.KW_SOCKET_PEER, 1, local=HTTP, remote=REMOTE, **UDP))
    begins, ends = (sync_record(phase=phase, time_ns=9 * 10**9) for phase in (3, 4))
    _told(engine, tools, begins + _record(lib.KW_SOCKET_LIVE, 1, local=HTTP, **UDP) + ends)
    mark = engine.mark()
    assert engine.listening(0, mark)[0] == (("udp", 80),)
    assert [remote.port for remote in engine.remotes(0, mark)[0]] == [REMOTE.port], "its peer is not forgotten"
    assert _told(engine, tools, begins + ends) == []
    mark = engine.mark()
    assert engine.listening(0, mark)[0] == ()
    assert engine.remotes(0, mark)[0] == ()


@pytest.mark.parametrize(
    ("family", "type_", "words"),
    [
        (socket.AF_UNIX, socket.SOCK_STREAM, ("unix", "stream")),
        (socket.AF_NETLINK, socket.SOCK_RAW, ("netlink", "raw")),
        (socket.AF_PACKET, socket.SOCK_DGRAM, ("packet", "dgram")),
        (socket.AF_BLUETOOTH, socket.SOCK_SEQPACKET, ("bluetooth", "seqpacket")),
        (socket.AF_CAN, socket.SOCK_RAW, ("can", "raw")),
        (socket.AF_VSOCK, socket.SOCK_STREAM, ("vsock", "stream")),
        (250, 99, ("250", "99")),
    ],
)
def test_a_socket_of_another_family_is_told(
    engine: Engine, tools: type[Tools], family: int, type_: int, words: tuple[str, str]
) -> None:
    (line,) = _told(engine, tools, _record(lib.KW_SOCKET_FAMILY, 0, family=family, type=type_))
    assert isinstance(line, lines.Socket)
    assert (line.family, line.type, line.process_id) == (*words, str(OWNER))


def test_a_connection_known_only_by_its_end_makes_a_line_and_no_remote(engine: Engine, tools: type[Tools]) -> None:
    engine.expect_destinations(0, [])
    (line,) = _told(engine, tools, _closed(bytes_in=1))
    assert isinstance(line, lines.Close)
    assert line.remote == "198.51.100.7:443"
    assert engine.remotes(0, 0) == ((), 0)


def _numbered(number: int) -> Endpoint:
    return Endpoint(IPv4Address(0x0A000000 + number), 443)


def test_remotes_beyond_the_bound_are_counted(engine: Engine) -> None:
    for number in range(1500):
        engine.ingest(_connected(number + 1, _numbered(number)) + _closed(number + 1, _numbered(number)))
    kept, missed = engine.remotes(0, 0)
    assert (len(kept), missed) == (1024, 476)
    assert [remote.address for remote in kept] == [str(_numbered(number).address) for number in range(476, 1500)]
    mark = engine.mark()
    engine.ingest(_connected(1, _numbered(0)) + _closed(1, _numbered(0)))
    assert [remote.address for remote in engine.remotes(0, mark)[0]] == ["10.0.0.0"]
    assert engine.remotes(0, 0)[1] == 476


def test_an_open_remote_is_never_dropped_and_one_without_room_is_missed_while_open(engine: Engine) -> None:
    for number in range(1030):
        engine.ingest(_connected(number + 1, _numbered(number)))
    mark = engine.mark()
    kept, missed = engine.remotes(0, mark)
    assert (len(kept), missed) == (1024, 6)
    for number in range(1030):
        engine.ingest(_closed(number + 1, _numbered(number)))
    kept, missed = engine.remotes(0, mark)
    assert (len(kept), missed) == (1024, 6)
    assert engine.remotes(0, engine.mark()) == ((), 0)


def test_sockets_beyond_the_bound_are_counted_and_still_told(engine: Engine) -> None:
    many = b"".join(_connected(cookie, _numbered(cookie % 8)) for cookie in range(1, 65_539))
    listener = _record(lib.KW_SOCKET_LISTENING, 10**9, local=HTTP)
    engine.ingest(listener + many)
    assert engine.take().lines_count == 65_539 + 1  # the last line is the loss
    assert engine.losses()["table_full"] == 3
    assert engine.listening(0, engine.mark()) == ((("tcp", 80),), 0)
    engine.ingest(b"".join(_closed(cookie, _numbered(cookie % 8)) for cookie in range(1, 65_539)))
    assert engine.remotes(0, engine.mark()) == ((), 0)


def test_a_watch_that_ends_takes_its_sockets_with_it(engine: Engine) -> None:
    engine.ingest(_connected(watches=0b11) + _record(lib.KW_SOCKET_LISTENING, 2, local=HTTP))
    engine.unwatch(0)
    with pytest.raises(EngineRefused, match="ENOENT"):
        engine.remotes(0, 0)
    engine.watch(0, "one", None)
    assert engine.remotes(0, 0) == ((), 0)
    assert engine.listening(0, 0) == ((), 0)
    assert len(engine.remotes(1, engine.mark())[0]) == 1
    engine.ingest(_closed(watches=0b11))
    assert engine.remotes(1, engine.mark()) == ((), 0)


@dataclass
class Model:
    """Sockets as a list, remotes and ports by definition."""

    open: dict[int, tuple[Remote | None, int | None]] = field(default_factory=dict)
    used: dict[Remote, int] = field(default_factory=dict)
    ports: dict[int, int] = field(default_factory=dict)
    clock: int = 0

    def touch(self, cookie: int) -> None:
        """What this socket has now is in use."""
        self.clock += 1
        remote, port = self.open[cookie]
        if remote:
            self.used[remote] = self.clock
        if port:
            self.ports[port] = self.clock

    def end(self, cookie: int) -> None:
        """It is over."""
        self.touch(cookie)
        del self.open[cookie]

    def window(self, since: int) -> tuple[set[Remote], set[int]]:
        """The remotes and ports of the window that began then."""
        remotes = {remote for remote, clock in self.used.items() if clock > since}
        ports = {port for port, clock in self.ports.items() if clock > since}
        remotes |= {remote for remote, _ in self.open.values() if remote}
        return remotes, ports | {port for _, port in self.open.values() if port}


DEEDS = st.lists(
    st.tuples(
        st.sampled_from(["connect", "fail", "accept", "listen", "close", "window", "turn"]),
        st.integers(1, 6),
        st.integers(0, 4),
    ),
    max_size=80,
)


def _turn(model: Model, cookie: int, number: int) -> bytes:
    """A datagram socket, of a cookie that no other has, turns to another peer."""
    peer = _numbered(number)
    model.open.setdefault(cookie, (None, None))
    model.touch(cookie)
    model.open[cookie] = (Remote(str(peer.address), peer.port, "udp", incoming=False), None)
    model.touch(cookie)
    return _record(lib.KW_SOCKET_PEER, cookie, remote=peer, **UDP)


def _begin(model: Model, deed: str, cookie: int, number: int) -> bytes:
    """A new TCP socket."""
    peer, at = _numbered(number), Endpoint(IPv4Address(0), 8000 + number)
    made: dict[str, tuple[Remote | None, int | None]] = {
        "listen": (None, at.port),
        "accept": (Remote(str(peer.address), at.port, "tcp", incoming=True), None),
    }
    model.open[cookie] = made.get(deed, (Remote(str(peer.address), peer.port, "tcp", incoming=False), None))
    model.touch(cookie)
    if deed == "listen":
        return _record(lib.KW_SOCKET_LISTENING, cookie, local=at)
    if deed == "accept":
        return _record(lib.KW_SOCKET_ACCEPTED, cookie, local=at, remote=peer)
    if deed == "fail":
        model.end(cookie)
        return _connected(cookie, peer, result=errno.ETIMEDOUT)
    return _connected(cookie, peer)


def _deed(model: Model, deed: str, cookie: int, number: int) -> bytes:
    """The record of a deed, empty where it cannot be done."""
    if deed == "turn":
        return _turn(model, cookie + 100, number)
    if (deed == "close") != (cookie in model.open):
        return b""
    if deed == "close":
        model.end(cookie)
        return _closed(cookie, _numbered(number))
    return _begin(model, deed, cookie, number)


@given(deeds=DEEDS)
@settings(deadline=None)
def test_remotes_and_ports_of_a_window_follow_their_definition(deeds: list[tuple[str, int, int]]) -> None:
    model = Model()
    with Engine(1) as engine:
        engine.watch(0, "one", None)
        mark, since = 0, 0
        for deed, cookie, number in deeds:
            if deed == "window":
                mark, since = engine.mark(), model.clock
            else:
                engine.ingest(_deed(model, deed, cookie, number))
            remotes, ports = model.window(since)
            found, missed = engine.remotes(0, mark)
            assert missed == 0
            assert len(found) == len(set(found))
            assert set(found) == remotes
            assert engine.listening(0, mark) == (tuple(("tcp", port) for port in sorted(ports)), 0)
        assert engine.losses()["bad_record"] == 0


def test_a_name_that_an_answer_told_stands_beside_the_remote(engine: Engine, tools: type[Tools]) -> None:
    question = b"\x07example\x03com\x00\x00\x01\x00\x01"
    answer = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04" + REMOTE.address.packed
    message = b"\x12\x34\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00" + question + answer
    server = Endpoint(IPv4Address("192.0.2.53"), 53)
    said = dns_record(time_ns=1, process=OWNER, watches=1, cookie=5, server=server, message=message, incoming=True)
    _, line = _told(engine, tools, said + _connected())
    assert isinstance(line, lines.Connect)
    assert line.name == "example.com"

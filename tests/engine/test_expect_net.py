"""Expected destinations and ports: the alarm comes with the first socket that breaks them, the clear with the last."""

# ruff: noqa: ANN401 - the fields of a record have every type
from __future__ import annotations

import errno
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from monitor.engine import Engine, lines
from monitor.engine._native import lib
from monitor.engine.records import Endpoint, ProcessId, socket_record
from monitor.errors import EngineRefused

if TYPE_CHECKING:
    from tests.engine.conftest import Tools, World

OWNER = ProcessId(500, 7 * 10**9)
LOCAL = Endpoint(IPv4Address("192.0.2.1"), 40000)
OURS, THEIRS, OTHERS = IPv4Address("10.1.2.3"), IPv4Address("203.0.113.9"), IPv4Address("203.0.113.10")
UDP: dict[str, Any] = {"protocol": socket.IPPROTO_UDP, "type": socket.SOCK_DGRAM}


def _socket(event: int, cookie: int = 1, *, process: ProcessId = OWNER, watches: int = 1, **fields: Any) -> bytes:
    full: dict[str, Any] = {"time_ns": 9 * 10**9, "local": LOCAL} | fields
    return socket_record(event=event, cookie=cookie, watches=watches, process=process, **full)


def _connects(address: IPv4Address | IPv6Address, cookie: int = 1, **fields: Any) -> bytes:
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    full: dict[str, Any] = {"family": family, "remote": Endpoint(address, 443)} | fields
    return _socket(lib.KW_SOCKET_CONNECTED, cookie, **full)


def _listens(port: int, cookie: int = 1, **fields: Any) -> bytes:
    return _socket(lib.KW_SOCKET_LISTENING, cookie, local=Endpoint(IPv4Address(0), port), **fields)


def _closes(cookie: int = 1, **fields: Any) -> bytes:
    return _socket(lib.KW_SOCKET_CLOSED, cookie, **fields)


def _told(engine: Engine, tools: type[Tools], records: bytes = b"") -> list[lines.Line]:
    engine.ingest(records)
    assert engine.losses()["bad_record"] == 0
    return tools.told(engine)


def _judgements(told: list[lines.Line]) -> list[tuple[str, object]]:
    return [(type(line).__name__.lower(), line.value) for line in told if isinstance(line, (lines.Alarm, lines.Clear))]


def test_a_foreign_destination_raises_the_alarm_and_its_end_clears_it(
    engine: Engine, world: World, tools: type[Tools]
) -> None:
    engine.expect_destinations(0, ["10.0.0.0/8", "fd00::/8"])
    root, record = world.start_root(0)
    child, fork = world.fork(root)
    engine.ingest(record + fork)
    engine.take()
    connect, alarm = _told(engine, tools, _connects(THEIRS, process=child.id))
    assert isinstance(connect, lines.Connect)
    assert isinstance(alarm, lines.Alarm)
    assert (alarm.watch, alarm.behavior, alarm.metric) == ("one", "destinations", "destination_ips_one")
    assert (alarm.value, alarm.time, alarm.since) == (("203.0.113.9",), connect.time, connect.time)
    assert alarm.criteria == lines.Criteria(
        comparison_operator="in-cidr-set", value=lines.CriteriaValue(cidrs=("10.0.0.0/8", "fd00::/8"))
    )
    assert alarm.process_ids == (str(child.id),)
    assert [one.process_id for one in alarm.lineage or ()] == [str(root.id), str(child.id)]
    close, clear = _told(engine, tools, _closes(process=child.id, time_ns=10**10))
    assert isinstance(close, lines.Close)
    assert isinstance(clear, lines.Clear)
    assert (clear.value, clear.since, clear.criteria) == ((), alarm.since, alarm.criteria)


def test_a_foreign_port_raises_the_alarm_and_its_end_clears_it(engine: Engine, tools: type[Tools]) -> None:
    engine.expect_ports(0, [80, 53])
    assert _judgements(_told(engine, tools, _listens(80, 1) + _listens(53, 2, **UDP))) == []
    listen, alarm = _told(engine, tools, _listens(4444, 3))
    assert isinstance(listen, lines.Listen)
    assert isinstance(alarm, lines.Alarm)
    assert (alarm.behavior, alarm.metric, alarm.value) == ("listening_ports", "listening_ports_one", (4444,))
    assert alarm.criteria == lines.Criteria(comparison_operator="in-set", value=lines.CriteriaValue(numbers=(80, 53)))
    assert alarm.process_ids == (str(OWNER),)
    assert alarm.lineage is UNSET  # nobody told of this process
    assert _judgements(_told(engine, tools, _closes(3))) == [("clear", ())]


def test_the_first_packet_of_a_connection_breaks_the_expectation_already(engine: Engine, tools: type[Tools]) -> None:
    engine.expect_destinations(0, [])
    begins = _socket(lib.KW_SOCKET_CONNECTING, remote=Endpoint(THEIRS, 443))
    assert _judgements(_told(engine, tools, begins)) == [("alarm", ("203.0.113.9",))]
    assert _judgements(_told(engine, tools, _connects(THEIRS))) == []
    assert _judgements(_told(engine, tools, _closes())) == [("clear", ())]


def test_an_attempt_that_fails_raises_and_clears(engine: Engine, tools: type[Tools]) -> None:
    engine.expect_destinations(0, ["10.0.0.0/8"])
    told = _told(engine, tools, _connects(THEIRS, result=errno.ECONNREFUSED))
    assert [type(line) for line in told] == [lines.Connect, lines.Alarm, lines.Clear]


def test_a_second_destination_does_not_hide_behind_the_first(engine: Engine, tools: type[Tools]) -> None:
    engine.expect_destinations(0, [])
    assert _judgements(_told(engine, tools, _connects(THEIRS, 1))) == [("alarm", ("203.0.113.9",))]
    assert _judgements(_told(engine, tools, _connects(THEIRS, 2))) == []
    second = _judgements(_told(engine, tools, _connects(OTHERS, 3)))
    assert second == [("alarm", ("203.0.113.9", "203.0.113.10"))]
    assert _judgements(_told(engine, tools, _closes(1) + _closes(3))) == []
    assert _judgements(_told(engine, tools, _closes(2))) == [("clear", ())]


def test_an_accepted_connection_is_no_destination(engine: Engine, tools: type[Tools]) -> None:
    engine.expect_destinations(0, [])
    accepted = _socket(lib.KW_SOCKET_ACCEPTED, remote=Endpoint(THEIRS, 5555))
    assert _judgements(_told(engine, tools, accepted)) == []


def test_a_datagram_to_a_foreign_address_stands_until_the_socket_turns_to_another(
    engine: Engine, tools: type[Tools]
) -> None:
    engine.expect_destinations(0, ["10.0.0.0/8"])
    peers = [_socket(lib.KW_SOCKET_PEER, remote=Endpoint(address, 53), **UDP) for address in (THEIRS, OTHERS, OURS)]
    assert _judgements(_told(engine, tools, peers[0])) == [("alarm", ("203.0.113.9",))]
    assert _judgements(_told(engine, tools, peers[1])) == [("alarm", ("203.0.113.9", "203.0.113.10"))]
    assert _judgements(_told(engine, tools, peers[2])) == [("clear", ())]


def test_what_was_there_before_is_judged_too(engine: Engine, tools: type[Tools]) -> None:
    engine.expect_destinations(0, [])
    engine.expect_ports(0, [])
    listens = _socket(lib.KW_SOCKET_LIVE, 1, local=Endpoint(IPv4Address(0), 80), state=10)
    served = _socket(lib.KW_SOCKET_LIVE, 2, local=Endpoint(OURS, 80), remote=Endpoint(OTHERS, 1), state=1)
    connected = _socket(lib.KW_SOCKET_LIVE, 3, remote=Endpoint(THEIRS, 443), state=1)
    told = _judgements(_told(engine, tools, listens + served + connected))
    assert told == [("alarm", (80,)), ("alarm", ("203.0.113.9",))]


def test_a_changed_expectation_is_judged_at_once(engine: Engine, tools: type[Tools]) -> None:
    assert _judgements(_told(engine, tools, _connects(THEIRS, 1) + _connects(OURS, 2) + _listens(80, 3))) == []
    engine.expect_destinations(0, ["10.0.0.0/8"])
    assert _judgements(_told(engine, tools)) == [("alarm", ("203.0.113.9",))]
    engine.expect_destinations(0, ["203.0.113.0/24"])
    assert _judgements(_told(engine, tools)) == [("alarm", ("10.1.2.3",))]
    engine.expect_destinations(0, ["10.0.0.0/8"])
    assert _judgements(_told(engine, tools)) == [("alarm", ("203.0.113.9",))]
    engine.expect_destinations(0, ["0.0.0.0/0"])
    assert _judgements(_told(engine, tools)) == [("clear", ())]
    engine.expect_ports(0, [])
    assert _judgements(_told(engine, tools)) == [("alarm", (80,))]
    engine.expect_ports(0, [])
    assert _judgements(_told(engine, tools)) == []
    engine.expect_ports(0, [80])
    assert _judgements(_told(engine, tools)) == [("clear", ())]


def test_a_withdrawn_expectation_and_a_withdrawn_watch_clear_their_alarms(engine: Engine, tools: type[Tools]) -> None:
    for slot in (0, 1):
        engine.expect_destinations(slot, [])
        engine.expect_ports(slot, [])
    _told(engine, tools, _connects(THEIRS, 1, watches=3) + _listens(80, 2, watches=3))
    engine.expect_destinations(0, None)
    engine.expect_ports(0, None)
    told = _told(engine, tools)
    assert _judgements(told) == [("clear", ()), ("clear", ())]
    assert all(isinstance(line, lines.Clear) and line.criteria.value is not UNSET for line in told)
    engine.unwatch(1)
    assert _judgements(_told(engine, tools)) == [("clear", ()), ("clear", ())]
    assert _judgements(_told(engine, tools, _closes(1, watches=3) + _closes(2, watches=3))) == []


def test_a_port_of_a_destination_is_judged_and_told(engine: Engine, tools: type[Tools]) -> None:
    expected = ["10.0.0.0/8:443", "[fd00::/8]:443", "203.0.113.9/32"]
    engine.expect_destinations(0, expected)
    held = [_connects(OURS, 1), _connects(IPv6Address("fd00::1"), 2), _connects(THEIRS, 3, remote=Endpoint(THEIRS, 22))]
    assert _judgements(_told(engine, tools, b"".join(held))) == []
    _, alarm = _told(engine, tools, _connects(OURS, 4, remote=Endpoint(OURS, 22)))
    assert isinstance(alarm, lines.Alarm)
    assert (alarm.metric, alarm.value) == ("destination_ips_one", ("10.1.2.3:22",))
    assert alarm.criteria == lines.Criteria(
        comparison_operator="in-set", value=lines.CriteriaValue(strings=tuple(expected))
    )
    six = Endpoint(IPv6Address("fd00::1"), 44300)
    other = _judgements(_told(engine, tools, _connects(IPv6Address("fd00::1"), 5, remote=six)))
    assert other == [("alarm", ("10.1.2.3:22", "[fd00::1]:44300"))]
    # Another port of an address that offends already is one more; the same once more is not.
    again = [_connects(OURS, 6, remote=Endpoint(OURS, 23)), _connects(OURS, 7, remote=Endpoint(OURS, 22))]
    told = _judgements(_told(engine, tools, b"".join(again)))
    assert told == [("alarm", ("10.1.2.3:22", "[fd00::1]:44300", "10.1.2.3:23"))]
    assert _judgements(_told(engine, tools, b"".join(_closes(cookie) for cookie in range(1, 7)))) == []
    assert _judgements(_told(engine, tools, _closes(7))) == [("clear", ())]


def test_who_offends_is_told_again_when_ports_begin_or_cease_to_count(engine: Engine, tools: type[Tools]) -> None:
    engine.expect_destinations(0, ["10.0.0.0/8"])
    both = _connects(THEIRS, 1) + _connects(THEIRS, 2, remote=Endpoint(THEIRS, 22)) + _connects(OURS, 3)
    assert _judgements(_told(engine, tools, both)) == [("alarm", ("203.0.113.9",))]
    engine.expect_destinations(0, ["10.0.0.0/8:443"])
    told = _judgements(_told(engine, tools))
    assert told == [("alarm", ("203.0.113.9:443",)), ("alarm", ("203.0.113.9:443", "203.0.113.9:22"))]
    engine.expect_destinations(0, ["10.0.0.0/8"])
    assert _judgements(_told(engine, tools)) == [("alarm", ("203.0.113.9",))]
    assert _judgements(_told(engine, tools, _closes(1))) == []
    assert _judgements(_told(engine, tools, _closes(2))) == [("clear", ())]
    engine.expect_destinations(0, ["10.0.0.0/8:22"])
    assert _judgements(_told(engine, tools)) == [("alarm", ("10.1.2.3:443",))]
    engine.expect_destinations(0, None)
    assert _judgements(_told(engine, tools)) == [("clear", ())]


def test_offenders_beyond_the_bound_keep_the_alarm_standing(engine: Engine, tools: type[Tools]) -> None:
    engine.expect_destinations(0, [])
    addresses = [IPv4Address(0xCB007100 + number) for number in range(70)]
    told = _judgements(_told(engine, tools, b"".join(_connects(one, 1 + i) for i, one in enumerate(addresses))))
    assert len(told) == 64
    assert told[-1] == ("alarm", tuple(map(str, addresses[:64])))
    assert _judgements(_told(engine, tools, b"".join(_closes(1 + i) for i in range(69)))) == []
    assert _judgements(_told(engine, tools, _closes(70))) == [("clear", ())]


NETWORKS = st.lists(
    st.ip_addresses(v=4).flatmap(
        lambda one: st.integers(0, 32).map(lambda bits: str(ip_network((one, bits), strict=False)))
    )
    | st.ip_addresses(v=6).flatmap(
        lambda one: st.integers(0, 128).map(lambda bits: str(ip_network((one, bits), strict=False)))
    ),
    max_size=3,
)


@given(
    cidrs=NETWORKS,
    address=st.ip_addresses(),
    near=st.booleans(),
    bit=st.integers(0, 127),
    ports=st.lists(st.sampled_from([0, 443, 444, 443 << 8 & 0xFFFF]), min_size=3, max_size=3),
)
@settings(deadline=None, max_examples=300)
def test_an_address_is_expected_when_a_network_holds_it_and_its_port(  # noqa: PLR0913 - what is varied
    tools: type[Tools],
    cidrs: list[str],
    address: IPv4Address | IPv6Address,
    bit: int,
    ports: list[int],
    *,
    near: bool,
) -> None:
    if near and cidrs:  # one bit beside the network, where mistakes live
        network = ip_network(cidrs[0])
        address = (
            ip_address(int(network.network_address) ^ (1 << bit % network.max_prefixlen))
            if network.version == 4
            else IPv6Address(int(network.network_address) ^ (1 << bit))
        )
    plain = address.ipv4_mapped if isinstance(address, IPv6Address) and address.ipv4_mapped else address
    pairs = list(zip(cidrs, ports, strict=False))
    expected = any(
        plain in ip_network(cidr) and port in {0, 443}
        for cidr, port in pairs
        if ip_network(cidr).version == plain.version
    )
    places = [cidr if not port else f"[{cidr}]:{port}" for cidr, port in pairs]
    with Engine(1) as engine:
        engine.watch(0, "one", None)
        engine.expect_destinations(0, places)
        assert bool(_judgements(_told(engine, tools, _connects(address)))) != expected


@given(deeds=st.lists(st.tuples(st.booleans(), st.integers(1, 8), st.integers(0, 5)), max_size=60))
@settings(deadline=None)
def test_alarms_follow_the_set_of_foreign_addresses(tools: type[Tools], deeds: list[tuple[bool, int, int]]) -> None:
    opened: dict[int, IPv4Address] = {}
    with Engine(1) as engine:
        engine.watch(0, "one", None)
        engine.expect_destinations(0, ["10.0.0.0/31"])
        for opens, cookie, number in deeds:
            before = {address for address in opened.values() if int(address) > 0x0A000001}
            if opens == (cookie in opened):
                continue
            if opens:
                opened[cookie] = IPv4Address(0x0A000000 + number)
                told = _judgements(_told(engine, tools, _connects(opened[cookie], cookie)))
            else:
                del opened[cookie]
                told = _judgements(_told(engine, tools, _closes(cookie)))
            now = {address for address in opened.values() if int(address) > 0x0A000001}
            if now - before:
                ((event, value),) = told
                assert event == "alarm"
                assert set(value) == set(map(str, now))  # type: ignore[call-overload]
            else:
                assert told == ([("clear", ())] if before and not now else [])


def test_impossible_expectations_are_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        engine.expect_destinations(0, ["nonsense"])
    with pytest.raises(EngineRefused, match="ENOENT"):
        engine.expect_destinations(9, [])
    with pytest.raises(EngineRefused, match="EINVAL"):
        engine.expect_ports(lib.KW_SLOTS, [])
    with pytest.raises(EngineRefused, match="EINVAL"):
        engine.expect_ports(0, [1] * 5000)
    with pytest.raises(OverflowError):
        engine.expect_ports(0, [65536])
    with pytest.raises(EngineRefused, match="ENOENT"):
        engine.listening(9, 0)

"""Expected names: an address is expected once an answer to kin of the watch has called it by one of them."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from monitor.engine import Engine, lines
from monitor.engine._native import lib
from monitor.engine.records import Endpoint, ProcessId, dns_record, socket_record
from monitor.errors import EngineRefused
from tests.engine.test_dns import AAAA, A, encode, text_of

if TYPE_CHECKING:
    from tests.engine.conftest import Tools

OWNER = ProcessId(500, 7 * 10**9)
SERVER = Endpoint(IPv4Address("192.0.2.53"), 53)
ONE, TWO, SIX = IPv4Address("203.0.113.9"), IPv4Address("203.0.113.10"), IPv6Address("2001:db8::9")
NAMES_KEPT = 4096


def _socket(event: int, cookie: int, address: IPv4Address | IPv6Address, *, watches: int = 1, port: int = 443) -> bytes:
    return socket_record(
        event=event,
        cookie=cookie,
        watches=watches,
        process=OWNER,
        time_ns=9 * 10**9,
        family=socket.AF_INET6 if address.version == 6 else socket.AF_INET,
        local=Endpoint(IPv4Address("192.0.2.1") if address.version == 4 else IPv6Address("2001:db8::1"), 40000),
        remote=Endpoint(address, port),
    )


def _connects(cookie: int, address: IPv4Address | IPv6Address, **fields: int) -> bytes:
    return _socket(lib.KW_SOCKET_CONNECTED, cookie, address, **fields)


def _closes(cookie: int, address: IPv4Address | IPv6Address = ONE) -> bytes:
    return _socket(lib.KW_SOCKET_CLOSED, cookie, address)


def _dns(message: bytes, *, incoming: bool = True, watches: int = 1) -> bytes:
    return dns_record(
        time_ns=9, process=OWNER, watches=watches, cookie=77, server=SERVER, message=message, incoming=incoming
    )


def _answers(name: str, *addresses: IPv4Address | IPv6Address, **fields: int) -> bytes:
    labels = [label.encode() for label in name.split(".")]
    records = [(A if address.version == 4 else AAAA, address) for address in addresses]
    return _dns(encode((labels, A), records), **fields)  # type: ignore[arg-type]


def _judgements(engine: Engine, tools: type[Tools], records: bytes = b"") -> list[tuple[str, Any]]:
    engine.ingest(records)
    assert engine.losses()["bad_record"] == 0
    return [
        (type(line).__name__.lower(), line.value)
        for line in tools.told(engine)
        if isinstance(line, (lines.Alarm, lines.Clear))
    ]


def test_an_address_that_an_answer_gave_an_expected_name_is_expected(engine: Engine, tools: type[Tools]) -> None:
    engine.expect_destinations(0, None, ["broker.local", "*.example.com"])
    answers = _answers("Broker.LOCAL", ONE) + _answers("a.b.Example.com", TWO, SIX)
    assert _judgements(engine, tools, answers + _connects(1, ONE) + _connects(2, TWO) + _connects(3, SIX)) == []
    foreign = IPv4Address("198.51.100.1")
    assert _judgements(engine, tools, _connects(4, foreign)) == [("alarm", ("198.51.100.1",))]


def test_names_stand_beside_networks_and_in_the_criteria(engine: Engine, tools: type[Tools]) -> None:
    engine.expect_destinations(0, ["10.0.0.0/8", "192.0.2.53/32:53"], ["broker.local"])
    engine.ingest(_connects(1, IPv4Address("10.1.2.3")) + _connects(2, SERVER.address, port=53))
    engine.ingest(_answers("broker.local", ONE) + _connects(3, ONE, port=22) + _connects(4, TWO))
    (alarm,) = [line for line in tools.told(engine) if isinstance(line, lines.Alarm)]
    assert alarm.value == ("203.0.113.10:443",)
    strings = ("10.0.0.0/8", "192.0.2.53/32:53", "broker.local")
    assert alarm.criteria == lines.Criteria(comparison_operator="in-set", value=lines.CriteriaValue(strings=strings))
    engine.expect_destinations(0, None, ["broker.local"])
    told = _judgements(engine, tools)
    assert told[-1] == ("alarm", ("10.1.2.3", "192.0.2.53", "203.0.113.10"))
    engine.expect_destinations(0, None)
    assert _judgements(engine, tools) == [("clear", ())]


def test_an_answer_that_comes_after_the_connection_is_too_late(engine: Engine, tools: type[Tools]) -> None:
    engine.expect_destinations(0, None, ["broker.local"])
    assert _judgements(engine, tools, _connects(1, ONE)) == [("alarm", ("203.0.113.9",))]
    assert _judgements(engine, tools, _answers("broker.local", ONE) + _connects(2, ONE)) == []
    assert _judgements(engine, tools, _closes(2)) == []
    assert _judgements(engine, tools, _closes(1)) == [("clear", ())]


def test_neither_a_question_nor_another_watch_s_answer_makes_a_name_known(engine: Engine, tools: type[Tools]) -> None:
    engine.watch(1, "two", None)
    engine.expect_destinations(0, None, ["broker.local"])
    engine.expect_destinations(1, None, ["broker.local"])
    asked = _dns(encode(([b"broker", b"local"], A), [(A, ONE)], response=False), incoming=False)
    sent = _answers("broker.local", ONE, incoming=False)
    assert _judgements(engine, tools, asked + sent + _connects(1, ONE)) == [("alarm", ("203.0.113.9",))]
    other = _answers("broker.local", TWO, watches=2) + _connects(2, TWO, watches=2)
    assert _judgements(engine, tools, other) == []
    assert _judgements(engine, tools, _connects(3, TWO)) == [("alarm", ("203.0.113.9", "203.0.113.10"))]


def test_an_address_that_two_names_share_stays_expected(engine: Engine, tools: type[Tools]) -> None:
    engine.expect_destinations(0, None, ["broker.local"])
    shared = _answers("broker.local", ONE) + _answers("elsewhere.test", ONE)
    assert _judgements(engine, tools, shared + _connects(1, ONE)) == []
    engine.expect_destinations(0, None, ["broker.local"])  # a reload changes nothing
    assert _judgements(engine, tools, _connects(2, ONE)) == []


def test_changed_names_are_judged_by_what_was_answered_before(engine: Engine, tools: type[Tools]) -> None:
    engine.expect_destinations(0, [])
    assert _judgements(engine, tools, _answers("broker.local", ONE) + _connects(1, ONE)) != []
    engine.expect_destinations(0, None, ["*.local"])
    assert _judgements(engine, tools) == [("clear", ())]
    engine.expect_destinations(0, None, ["*.test"])
    assert _judgements(engine, tools) == [("alarm", ("203.0.113.9",))]


def test_a_watch_that_ends_takes_its_answers_with_it(engine: Engine, tools: type[Tools]) -> None:
    engine.expect_destinations(0, None, ["broker.local"])
    engine.ingest(_answers("broker.local", ONE))
    engine.unwatch(0)
    engine.watch(0, "other", None)
    engine.expect_destinations(0, None, ["broker.local"])
    assert _judgements(engine, tools, _connects(1, ONE)) == [("alarm", ("203.0.113.9",))]


def test_the_addresses_told_longest_ago_are_forgotten(engine: Engine, tools: type[Tools]) -> None:
    engine.expect_destinations(0, None, ["broker.local"])
    engine.ingest(_answers("broker.local", ONE) + _answers("broker.local", TWO))
    base = int(IPv4Address("10.0.0.0"))
    others = [IPv4Address(base + number) for number in range(NAMES_KEPT - 1)]
    for start in range(0, len(others), 30):
        engine.ingest(_answers("elsewhere.test", *others[start : start + 30]))
    assert _judgements(engine, tools, _connects(1, TWO)) == []
    assert _judgements(engine, tools, _connects(2, ONE)) == [("alarm", ("203.0.113.9",))]
    assert _judgements(engine, tools, _connects(3, others[0]))[0][0] == "alarm"  # its cell was another's


LABEL = st.sampled_from([b"a", b"B", b"example", b"com", b"a.b", b"x\\", b"\xff"])


@given(
    labels=st.lists(LABEL, min_size=1, max_size=5),
    pattern=st.lists(st.sampled_from(["a", "b", "example", "com"]), min_size=1, max_size=4),
    below=st.booleans(),
)
@example(labels=[b"evil.example", b"com"], pattern=["example", "com"], below=True)
@example(labels=[b"a", b"example", b"com"], pattern=["example", "com"], below=True)
@example(labels=[b"example", b"com"], pattern=["example", "com"], below=True)
@settings(deadline=None, max_examples=300)
def test_a_name_matches_label_by_label(
    tools: type[Tools], labels: list[bytes], pattern: list[str], *, below: bool
) -> None:
    plain = [label.decode("latin-1").lower() for label in labels]
    expected = len(plain) > len(pattern) and plain[-len(pattern) :] == pattern if below else plain == pattern
    # Where a label ends in a backslash before the tail, kinwatch errs on the side of the alarm.
    unsure = below and labels[: -len(pattern)][-1:] == [b"x\\"]
    with Engine(1) as engine:
        engine.watch(0, "one", None)
        engine.expect_destinations(0, None, [("*." if below else "") + ".".join(pattern)])
        told = _judgements(engine, tools, _dns(encode((labels, A), [(A, ONE)])) + _connects(1, ONE))
        assert bool(told) == (not expected or unsure), text_of(labels)


@pytest.mark.parametrize("name", ["", "a b", 'a"', "A.b", "a\nb", "ä"])
def test_impossible_names_are_refused(engine: Engine, name: str) -> None:
    with pytest.raises(EngineRefused, match="EINVAL"):
        engine.expect_destinations(0, None, [name])

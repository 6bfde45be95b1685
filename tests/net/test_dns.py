"""Names that kin asked for and what it was told, over UDP and TCP: as many lines, with the same words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import UNSET

from monitor.engine.lines import Connect, Dns
from monitor.remote import endpoint
from tests.net import dns
from tests.net.peer import EXCHANGE
from tests.net.rig import FAR4, FAR6, MAPPED, as_told

if TYPE_CHECKING:
    from tests.net.rig import Kinwatch, Net

TRANSPORTS = pytest.mark.parametrize("transport", ["udp", "unconnected", "tcp", "split"])


@pytest.fixture(autouse=True)
def _packets(net: Net) -> None:
    """What is asked for here is in the packets."""
    net.packets = True


@dataclass
class Exchange:
    """A question, what the server answers, and how the answer's line reads."""

    asked: str
    kind: int
    type: str
    answer: bytes
    line: dict[str, Any] = field(default_factory=dict)


def _exchanges() -> list[Exchange]:
    """One of each kind. Ids are the positions."""
    alias, target = "www.example.test", "host.example.test"
    chain = [
        dns.record(dns.CNAME, dns.name("edge.example.test")),
        dns.record(dns.CNAME, dns.name(target), dns.name("edge.example.test")),
        dns.address("192.0.2.44", dns.name(target)),
        dns.address("192.0.2.45", dns.name(target)),
    ]
    return [
        Exchange(
            "plain.example.test",
            dns.A,
            "A",
            dns.answer(0, "plain.example.test", dns.A, [dns.address("192.0.2.1")]),
            {"rcode": "NOERROR", "answers": ("192.0.2.1",)},
        ),
        Exchange(
            "six.example.test",
            dns.AAAA,
            "AAAA",
            dns.answer(1, "six.example.test", dns.AAAA, [dns.address("2001:db8::6"), dns.address("2001:db8::7")]),
            {"rcode": "NOERROR", "answers": ("2001:db8::6", "2001:db8::7")},
        ),
        Exchange(
            alias,
            dns.A,
            "A",
            dns.answer(2, alias, dns.A, chain),
            {"rcode": "NOERROR", "answers": ("edge.example.test", target, "192.0.2.44", "192.0.2.45")},
        ),
        Exchange(
            "nobody.example.test",
            dns.A,
            "A",
            dns.answer(3, "nobody.example.test", dns.A, [], bits=dns.NXDOMAIN),
            {"rcode": "NXDOMAIN"},
        ),
        Exchange(
            "broken.example.test",
            dns.TXT,
            "TXT",
            dns.answer(4, "broken.example.test", dns.TXT, [], bits=dns.SERVFAIL),
            {"rcode": "SERVFAIL"},
        ),
        Exchange(
            "cut.example.test",
            dns.A,
            "A",
            dns.answer(5, "cut.example.test", dns.A, [dns.address("192.0.2.5")], bits=dns.TRUNCATED),
            {"rcode": "NOERROR", "answers": ("192.0.2.5",), "truncated": True},
        ),
        Exchange(  # two records promised, the second ends in the middle
            "short.example.test",
            dns.A,
            "A",
            dns.answer(6, "short.example.test", dns.A, [dns.address("192.0.2.6"), dns.address("192.0.2.7")])[:-3],
            {"rcode": "NOERROR", "answers": ("192.0.2.6",), "malformed": True},
        ),
    ]


def _ask(net: Net, server: str, transport: str, exchanges: list[Exchange]) -> tuple[Kinwatch, dict[str, Any]]:
    """Have kin ask all of it, of a server that answers so; the watcher, and what kin told of itself."""
    queries = [dns.query(number, one.asked, one.kind) for number, one in enumerate(exchanges)]
    zone = {query[2:].hex(): one.answer[2:].hex() for query, one in zip(queries, exchanges, strict=True)}
    net.peer.order("zone", udp=zone, tcp=zone)
    net.peer.told("zone", size=len(zone))
    watcher = net.watch("ask")
    program = net.start_known(watcher, "ask", server, transport, *(query.hex() for query in queries))
    done = program.fact("done")
    assert [fact["bytes"] for fact in program.facts("answered")] == [len(one.answer) for one in exchanges]
    program.release()
    watcher.wait_for(Dns, 2 * len(exchanges))
    watcher.finish()
    return watcher, done


@TRANSPORTS
@pytest.mark.parametrize("server", [FAR4, FAR6, MAPPED])
def test_every_question_and_every_answer_is_a_line(net: Net, server: str, transport: str) -> None:
    exchanges = _exchanges()
    watcher, done = _ask(net, server, transport, exchanges)
    told = watcher.of(Dns)
    assert {line.process_id for line in told} == {done["process_id"]}
    assert {line.server for line in told} == {endpoint(as_told(server), 53)}
    questions = [line for line in told if line.rcode is UNSET]
    answers = [line for line in told if line.rcode is not UNSET]
    assert [(line.name, line.type) for line in questions] == [(one.asked, one.type) for one in exchanges]
    assert all(line.answers is UNSET for line in questions)
    keys = ("rcode", "answers", "truncated", "malformed")
    assert [(line.name, line.type, {key: getattr(line, key) for key in keys}) for line in answers] == [
        (one.asked, one.type, {key: one.line.get(key, UNSET) for key in keys}) for one in exchanges
    ]


@TRANSPORTS
def test_a_name_of_many_pieces_and_odd_bytes_is_told_whole(net: Net, transport: str) -> None:
    longest = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])  # 255 bytes on the wire, the most there is
    answer = dns.answer(0, longest, dns.A, [dns.address("192.0.2.1")] * 16)
    watcher, _ = _ask(net, FAR4, transport, [Exchange(longest, dns.A, "A", answer)])
    assert [line.name for line in watcher.of(Dns)] == [longest, longest]
    assert watcher.of(Dns)[1].answers == ("192.0.2.1",) * 16


def test_what_is_no_dns_message_is_told_as_malformed(net: Net) -> None:
    query = dns.query(0, "x.example.test", dns.A)
    garbage = bytes(range(200, 256))
    net.peer.order("zone", udp={query[2:].hex(): garbage.hex()}, tcp={})
    net.peer.told("zone", size=1)
    watcher = net.watch("ask")
    program = net.start_known(watcher, "ask", FAR4, "udp", query.hex())
    program.fact("done")
    program.release()
    watcher.wait_for(Dns, 2)
    watcher.finish()
    question, answer = watcher.of(Dns)
    assert (question.name, question.malformed) == ("x.example.test", UNSET)
    assert answer.malformed is True


def test_a_connection_to_an_address_that_an_answer_told_carries_the_name(net: Net) -> None:
    alias, target = "service.example.test", "host.example.test"
    records = [dns.record(dns.CNAME, dns.name(target)), dns.address(FAR4, dns.name(target))]
    query = dns.query(0, alias, dns.A)
    zone = {query[2:].hex(): dns.answer(0, alias, dns.A, records)[2:].hex()}
    net.peer.order("zone", udp=zone, tcp={})
    net.peer.told("zone", size=1)
    watcher = net.watch("ask")
    program = net.start_known(watcher, "ask", FAR4, "udp", query.hex(), "then", EXCHANGE)
    program.fact("done")
    program.release()
    watcher.wait_for(Connect, protocol="tcp")
    assert watcher.one(Connect, protocol="tcp").name == alias
    watcher.finish()

"""DNS messages: what is asked and answered is told, whatever bytes come; checked against an encoder of its own."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from monitor.engine import Engine, lines
from monitor.engine._native import lib
from monitor.engine.records import Endpoint, ProcessId, dns_record, socket_record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.engine.conftest import Tools

OWNER = ProcessId(500, 7 * 10**9)
SERVER = Endpoint(IPv4Address("192.0.2.53"), 53)
A, NS, CNAME, PTR, MX, TXT, AAAA = 1, 2, 5, 12, 15, 16, 28
TYPES = {A: "A", NS: "NS", CNAME: "CNAME", PTR: "PTR", MX: "MX", TXT: "TXT", AAAA: "AAAA", 65280: "65280"}
NAME_BYTES = 255


def encode_name(labels: Sequence[bytes], offsets: dict[tuple[bytes, ...], int] | None, at: int) -> bytes:
    """A name that stands at `at`; with offsets, compressed by what stands before, as RFC 1035 4.1.4 has it."""
    out = b""
    rest = tuple(labels)
    while rest:
        if offsets is not None and rest in offsets:
            return out + struct.pack("!H", 0xC000 | offsets[rest])
        if offsets is not None and at + len(out) < 0x4000:
            offsets[rest] = at + len(out)
        out += bytes((len(rest[0]),)) + rest[0]
        rest = rest[1:]
    return out + b"\0"


def text_of(labels: Sequence[bytes]) -> str:
    """A name as a line writes it, by RFC 4343 2.1."""

    def byte_of(byte: int) -> str:
        if byte in b".\\":
            return "\\" + chr(byte)
        return chr(byte) if 0x21 <= byte <= 0x7E else f"\\{byte:03d}"

    return ".".join("".join(map(byte_of, label)) for label in labels) or "."


def encode(  # noqa: PLR0913 - the parts of a message
    question: tuple[Sequence[bytes], int],
    answers: Sequence[tuple[int, object]] = (),
    *,
    response: bool = True,
    rcode: int = 0,
    compress: bool = True,
    flags: int = 0,
) -> bytes:
    """A message with one question. An answer: its type, and labels, an address or raw bytes."""
    offsets: dict[tuple[bytes, ...], int] | None = {} if compress else None
    labels, kind = question
    out = struct.pack("!6H", 0x1234, response << 15 | flags | rcode, 1, len(answers), 0, 0)
    out += encode_name(labels, offsets, len(out)) + struct.pack("!2H", kind, 1)
    for type_, value in answers:
        out += encode_name(labels, offsets, len(out)) + struct.pack("!2HI", type_, 1, 60)
        if isinstance(value, IPv4Address | IPv6Address):
            data = value.packed
        elif isinstance(value, bytes):
            data = value
        else:
            data = encode_name(value, offsets, len(out) + 2)  # type: ignore[arg-type]
        out += struct.pack("!H", len(data)) + data
    return out


def _record(message: bytes, *, incoming: bool = True, total: int | None = None) -> bytes:
    return dns_record(
        time_ns=9,
        process=OWNER,
        watches=1,
        cookie=77,
        server=SERVER,
        message=message,
        incoming=incoming,
        total=total,
    )


def _told(engine: Engine, tools: type[Tools], message: bytes, **fields: bool | int | None) -> lines.Dns:
    assert engine.ingest(_record(message, **fields)) == 1  # type: ignore[arg-type]
    (line,) = tools.told(engine)
    assert isinstance(line, lines.Dns)
    return line


LABELS = st.lists(st.binary(min_size=1, max_size=63), max_size=8).filter(
    lambda labels: sum(len(label) + 1 for label in labels) + 1 <= NAME_BYTES
)
ANSWERS = st.lists(
    st.one_of(
        st.tuples(st.just(A), st.ip_addresses(v=4)),
        st.tuples(st.just(AAAA), st.ip_addresses(v=6)),
        st.tuples(st.sampled_from([CNAME, NS, PTR]), LABELS),
        st.tuples(st.sampled_from([TXT, MX]), st.binary(max_size=40)),
    ),
    max_size=6,
)


def _shown(answers: Sequence[tuple[int, object]]) -> tuple[str, ...]:
    shown = []
    for type_, value in answers:
        if isinstance(value, IPv6Address):
            shown.append(str(value.ipv4_mapped or value))
        elif isinstance(value, IPv4Address):
            shown.append(str(value))
        elif type_ in {CNAME, NS, PTR}:
            shown.append(text_of(value))  # type: ignore[arg-type]
    return tuple(shown)


@given(labels=LABELS, kind=st.sampled_from(sorted(TYPES)), answers=ANSWERS, compress=st.booleans())
@settings(deadline=None, max_examples=200)
def test_a_sound_answer_is_told_as_it_was_meant(
    tools: type[Tools], labels: list[bytes], kind: int, answers: list[tuple[int, object]], *, compress: bool
) -> None:
    message = encode((labels, kind), answers, compress=compress)
    if len(message) > lib.KW_DNS_BYTES:
        return
    with Engine(1) as engine:
        engine.watch(0, "one", None)
        line = _told(engine, tools, message)
    assert (line.name, line.type, line.rcode) == (text_of(labels), TYPES[kind], "NOERROR")
    assert line.answers == (_shown(answers) or UNSET)
    assert (line.malformed, line.truncated) == (UNSET, UNSET)


@given(
    message=st.binary(max_size=1600) | st.binary(max_size=60).map(lambda tail: b"\0\1\x81\x80\0\1\0\4\0\0\0\0" + tail)
)
@settings(deadline=None, max_examples=400)
def test_any_bytes_make_a_line_and_no_harm(tools: type[Tools], message: bytes) -> None:
    with Engine(1) as engine:
        engine.watch(0, "one", None)
        _told(engine, tools, message)
        assert engine.losses()["bad_record"] == 0


@given(labels=LABELS, answers=ANSWERS, place=st.integers(0, 2000), byte=st.integers(0, 255))
@settings(deadline=None, max_examples=200)
def test_a_spoilt_byte_does_no_harm(
    tools: type[Tools], labels: list[bytes], answers: list[tuple[int, object]], place: int, byte: int
) -> None:
    message = bytearray(encode((labels, A), answers))
    message[place % len(message)] = byte
    with Engine(1) as engine:
        engine.watch(0, "one", None)
        _told(engine, tools, bytes(message))


def test_a_question_is_a_line_without_rcode(engine: Engine, tools: type[Tools]) -> None:
    line = _told(engine, tools, encode(([b"example", b"com"], AAAA), response=False), incoming=False)
    assert (line.name, line.type, line.server) == ("example.com", "AAAA", "192.0.2.53:53")
    assert (line.rcode, line.answers, line.connection_id) == (UNSET, UNSET, "77")
    assert (line.pid, line.process_id) == (OWNER.pid, str(OWNER))


@pytest.mark.parametrize(
    ("rcode", "word"), [(0, "NOERROR"), (2, "SERVFAIL"), (3, "NXDOMAIN"), (5, "REFUSED"), (13, "13")]
)
def test_an_answer_says_how_it_went(engine: Engine, tools: type[Tools], rcode: int, word: str) -> None:
    line = _told(engine, tools, encode(([b"nowhere"], A), rcode=rcode))
    assert (line.rcode, line.answers) == (word, UNSET)


QUESTION = b"\0\1\x81\x80\0\1\0\1\0\0\0\0\1a\0\0\1\0\1"
BROKEN = {
    "nothing": b"",
    "half a header": b"\0\1\x81\x80\0\1",
    "no question": b"\0\1\x81\x80\0\0\0\0\0\0\0\0",
    "two questions": b"\0\1\x81\x80\0\2\0\0\0\0\0\0\1a\0\0\1\0\1\1a\0\0\1\0\1",
    "a pointer to itself": b"\0\1\x81\x80\0\1\0\0\0\0\0\0\xc0\x0c\0\1\0\1",
    "pointers to each other": b"\0\1\x81\x80\0\1\0\0\0\0\0\0\xc0\x0e\xc0\x0c\0\1\0\1",
    "a pointer forward": b"\0\1\x81\x80\0\1\0\0\0\0\0\0\xc0\x20\0\1\0\1" + b"\0" * 30,
    "a loop through a label": b"\0\1\x81\x80\0\1\0\0\0\0\0\0\1a\xc0\x0c\0\1\0\1",
    "a label of a reserved kind": b"\0\1\x81\x80\0\1\0\0\0\0\0\0\x41a\0\0\1\0\1",
    "a name of 256 bytes": b"\0\1\x81\x80\0\1\0\0\0\0\0\0"
    + (b"\x3f" + b"a" * 63) * 3
    + b"\x3e"
    + b"a" * 62
    + b"\0"
    + b"\0\1\0\1",
    "an address of 3 bytes": QUESTION + b"\xc0\x0c\0\1\0\1\0\0\0\0\0\3abc",
    "an answer beyond the end": QUESTION + b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4ab",
    "a name that ends before its data": QUESTION + b"\xc0\x0c\0\5\0\1\0\0\0\0\0\4\xc0\x0c\0\0",
    "a missing answer": QUESTION,
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_message_is_told_as_such(engine: Engine, tools: type[Tools], what: str) -> None:
    line = _told(engine, tools, BROKEN[what])
    assert line.malformed is True
    assert line.answers is UNSET
    assert line.name == ("a" if BROKEN[what].startswith(QUESTION) else "")


def test_the_longest_name_is_told_whole(engine: Engine, tools: type[Tools]) -> None:
    labels = [b"\xff" * 63, b"\xff" * 63, b"\xff" * 63, b"\xff" * 61]
    line = _told(engine, tools, encode((labels, A), [(CNAME, labels)]))
    assert line.malformed is UNSET
    assert line.name == text_of(labels)
    assert line.answers == (text_of(labels),)


def test_what_stands_before_the_break_is_shown(engine: Engine, tools: type[Tools]) -> None:
    message = encode(([b"a"], A), [(A, IPv4Address("192.0.2.1")), (A, b"abc")])
    line = _told(engine, tools, message)
    assert (line.answers, line.malformed) == (("192.0.2.1",), True)


def test_a_cut_message_is_truncated_not_malformed(engine: Engine, tools: type[Tools]) -> None:
    message = encode(([b"a"], A), [(A, IPv4Address("192.0.2.1")), (A, IPv4Address("192.0.2.2"))])
    line = _told(engine, tools, message[:-2], total=len(message))
    assert (line.answers, line.truncated, line.malformed) == (("192.0.2.1",), True, UNSET)
    assert _told(engine, tools, encode(([b"a"], A), flags=0x200)).truncated is True
    assert _told(engine, tools, encode(([b"a"], A), [(TXT, b"x" * 1600)])).truncated is True


def test_more_answers_than_are_shown_are_said_to_be_there(engine: Engine, tools: type[Tools]) -> None:
    addresses = [IPv4Address(0x0A000000 + number) for number in range(33)]
    line = _told(engine, tools, encode(([b"a"], A), [(A, address) for address in addresses]))
    assert line.answers == tuple(map(str, addresses[:32]))
    assert line.truncated is True
    exactly = _told(engine, tools, encode(([b"a"], A), [(A, address) for address in addresses[:32]]))
    assert exactly.truncated is UNSET


def _name_of(engine: Engine, tools: type[Tools], address: IPv4Address) -> object:
    engine.ingest(
        socket_record(
            event=lib.KW_SOCKET_CONNECTED,
            time_ns=9,
            process=OWNER,
            watches=1,
            cookie=1,
            local=Endpoint(IPv4Address("192.0.2.1"), 1),
            remote=Endpoint(address, 443),
        )
    )
    (line,) = tools.told(engine)
    assert isinstance(line, lines.Connect)
    return line.name


def test_the_name_asked_for_is_remembered_for_every_address(engine: Engine, tools: type[Tools]) -> None:
    first, second = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
    chain = [(CNAME, [b"cdn"]), (A, first), (A, second)]
    _told(engine, tools, encode(([b"www", b"example"], A), chain))
    assert _name_of(engine, tools, first) == "www.example"
    _told(engine, tools, encode(([b"other"], A), [(A, second)]))
    assert (_name_of(engine, tools, first), _name_of(engine, tools, second)) == ("www.example", "other")


def test_only_what_comes_from_a_server_names_an_address(engine: Engine, tools: type[Tools]) -> None:
    address = IPv4Address("192.0.2.1")
    _told(engine, tools, encode(([b"a"], A), [(A, address)]), incoming=False)
    _told(engine, tools, encode(([b"b"], A), [(A, address)], response=False))
    assert _name_of(engine, tools, address) is UNSET


def test_the_oldest_names_are_forgotten_first(engine: Engine, tools: type[Tools]) -> None:
    for number in range(4097):
        engine.ingest(_record(encode(([b"host%d" % number], A), [(A, IPv4Address(0x0A000000 + number))])))
    engine.take()
    assert _name_of(engine, tools, IPv4Address("10.0.0.0")) is UNSET
    assert _name_of(engine, tools, IPv4Address("10.0.0.1")) == "host1"
    assert _name_of(engine, tools, IPv4Address("10.0.16.0")) == "host4096"

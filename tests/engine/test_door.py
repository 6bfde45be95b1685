"""The door trusts no byte: what is no sound record is refused, counted and told, and harms nothing."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.engine import Engine, lines
from monitor.engine._native import ffi, lib
from monitor.engine.records import (
    Endpoint,
    ProcessId,
    clock_record,
    dns_record,
    exit_record,
    forget_record,
    fork_record,
    image_record,
    lost_record,
    socket_record,
    sync_record,
)

if TYPE_CHECKING:
    from tests.engine.conftest import Tools, World

ROOT, CHILD = ProcessId(100, 10**9), ProcessId(101, 2 * 10**9)
EXEC = image_record(
    kind=lib.KW_EXEC, time_ns=5, process=CHILD, watches=1, comm=b"c", exe=b"/bin/c", argv=[b"a"], script=b"/s", cwd=b"/"
)
HERE, THERE = Endpoint(IPv4Address("192.0.2.1"), 40000), Endpoint(IPv4Address("198.51.100.7"), 443)
CONNECTED = socket_record(
    event=lib.KW_SOCKET_CONNECTED, time_ns=5, process=CHILD, watches=1, cookie=7, local=HERE, remote=THERE
)
DNS = dns_record(time_ns=5, process=CHILD, watches=1, cookie=7, server=THERE, message=b"x" * 20, incoming=True)
SOUND = {
    "fork": fork_record(time_ns=5, process=CHILD, parent=ROOT, watches=1, comm=b"c"),
    "exec": EXEC,
    "adopt": image_record(kind=lib.KW_ADOPT, time_ns=5, process=CHILD, watches=1, fresh=1, comm=b"c"),
    "exit": exit_record(time_ns=5, process=CHILD, watches=1, comm=b"c"),
    "forget": forget_record(time_ns=5, process=CHILD, gone=1),
    "sync": sync_record(phase=0, time_ns=5),
    "lost": lost_record(time_ns=5, stage=0, count=1),
    "clock": clock_record(time_ns=5, wall_ns=1),
    "socket": CONNECTED,
    "socket of another family": socket_record(
        event=lib.KW_SOCKET_FAMILY, time_ns=5, process=CHILD, watches=1, cookie=0, family=socket.AF_UNIX, protocol=0
    ),
    "dns": DNS,
}


def _with(record: bytes, kind: str, **members: object) -> bytes:
    cell = ffi.new(f"struct {kind} *")
    size = ffi.sizeof(cell[0])
    ffi.memmove(cell, record, size)
    for path, value in members.items():
        *outer, last = path.split("__")
        place = cell
        for name in outer:
            place = getattr(place, name)
        setattr(place, last, value)
    return bytes(ffi.buffer(cell)) + record[size:]


LONG_TEXT = image_record(kind=lib.KW_EXEC, time_ns=5, process=CHILD, watches=1, comm=b"c", argv=[b"a" * 8000])
DNS_BYTES = ffi.sizeof("struct kw_dns")
IMAGE_BYTES = ffi.sizeof("struct kw_image")
REFUSED = {
    "unknown kind": _with(SOUND["fork"], "kw_fork", header__kind=11),
    "kind zero": _with(SOUND["fork"], "kw_fork", header__kind=0),
    "shorter than its kind": struct.pack("=IHHQQQ", 32, lib.KW_FORK, 0, 5, 1, 0),
    "root of what it is not kin of": _with(SOUND["exit"], "kw_exit", header__roots=2),
    "a forked root": _with(SOUND["fork"], "kw_fork", header__roots=1),
    "its own parent": _with(SOUND["fork"], "kw_fork", parent__pid=CHILD.pid),
    "fork of pid 0": _with(SOUND["fork"], "kw_fork", process__pid=0),
    "exec of pid 0": _with(EXEC, "kw_image", process__pid=0),
    "exit of pid 0": _with(SOUND["exit"], "kw_exit", process__pid=0),
    "forget of pid 0": _with(SOUND["forget"], "kw_forget", process__pid=0),
    "fresh in what it is not kin of": _with(EXEC, "kw_image", fresh=2),
    "a descendant by exec": _with(EXEC, "kw_image", fresh=1),
    "a root without a cause": _with(EXEC, "kw_image", fresh=1, header__roots=1),
    "a root of an unknown cause": _with(EXEC, "kw_image", fresh=1, header__roots=1, cause=4),
    "text before the tail": _with(EXEC, "kw_image", exe__offset=IMAGE_BYTES - 1),
    "text behind the record": _with(EXEC, "kw_image", argv__length=100),
    "text far behind the record": _with(EXEC, "kw_image", cwd__offset=2**32 - 1),
    "text that wraps": _with(EXEC, "kw_image", script__offset=2**32 - 1, script__length=2**32 - 1),
    "a path that is too long": _with(LONG_TEXT, "kw_image", exe__offset=IMAGE_BYTES, exe__length=4097),
    "sync of pid 0": SOUND["sync"] + sync_record(phase=1, time_ns=5),
    "sync phase 5": SOUND["sync"] + sync_record(phase=5, time_ns=5, process=CHILD),
    "a socket of pid 0": _with(CONNECTED, "kw_socket", process__pid=0),
    "a socket without a cookie": _with(CONNECTED, "kw_socket", cookie=0),
    "a socket event 0": _with(CONNECTED, "kw_socket", event=0),
    "an unknown socket event": _with(CONNECTED, "kw_socket", event=9),
    "a connection of another family": _with(CONNECTED, "kw_socket", family=socket.AF_UNIX),
    "another family that is IP": _with(CONNECTED, "kw_socket", event=lib.KW_SOCKET_FAMILY),
    "an accept that failed": _with(CONNECTED, "kw_socket", event=lib.KW_SOCKET_ACCEPTED, result=111),
    "a result that is no errno": _with(CONNECTED, "kw_socket", result=4096),
    "a live socket with more to say than there is": _with(CONNECTED, "kw_socket", event=lib.KW_SOCKET_LIVE, result=4),
    "an unknown TCP state": _with(CONNECTED, "kw_socket", event=lib.KW_SOCKET_LIVE, state=13),
    "a TCP socket without a peer of its own": _with(CONNECTED, "kw_socket", event=lib.KW_SOCKET_PEER),
    "a listener without a port": _with(CONNECTED, "kw_socket", event=lib.KW_SOCKET_LISTENING, local_port=0),
    "a socket that is cut": CONNECTED[:-8].replace(
        struct.pack("=I", len(CONNECTED)), struct.pack("=I", len(CONNECTED) - 8), 1
    ),
    "dns of pid 0": _with(DNS, "kw_dns", process__pid=0),
    "dns without a socket": _with(DNS, "kw_dns", cookie=0),
    "dns over another family": _with(DNS, "kw_dns", family=socket.AF_UNIX),
    "dns in a third direction": _with(DNS, "kw_dns", incoming=2),
    "dns before the tail": _with(DNS, "kw_dns", message__offset=DNS_BYTES - 1),
    "dns behind the record": _with(DNS, "kw_dns", message__length=25, total=25),
    "dns far behind the record": _with(DNS, "kw_dns", message__offset=2**32 - 1),
    "dns of more bytes than the message has": _with(DNS, "kw_dns", total=19),
    "dns of more bytes than are looked at": _with(
        DNS + bytes(1600 - 24), "kw_dns", header__size=len(DNS) + 1600 - 24, message__length=1537, total=1600
    ),
    "unknown stage": lost_record(time_ns=5, stage=lib.KW_STAGES, count=1),
}


@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_record_passes(engine: Engine, kind: str) -> None:
    assert engine.ingest(SOUND[kind]) == 1
    assert engine.losses()["bad_record"] == 0


@pytest.mark.parametrize("case", REFUSED)
def test_nonsense_is_refused_and_the_next_record_passes(engine: Engine, case: str, tools: type[Tools]) -> None:
    head = SOUND["sync"] if case.startswith("sync") else b""
    assert engine.ingest(REFUSED[case] + SOUND["lost"]) == 1 + bool(head)
    assert engine.losses()["bad_record"] == 1
    told = tools.told(engine)
    assert [line.stage for line in told if isinstance(line, lines.Lost)] == ["ring_full", "bad_record"]
    assert len(told) == 2


@pytest.mark.parametrize("size", [0, 1, 8, 31, 33, 36, 10**6, 2**32 - 8])
def test_a_size_that_cannot_be_gives_up_the_rest(engine: Engine, size: int) -> None:
    rotten = struct.pack("=I", size) + SOUND["fork"][4:]
    assert engine.ingest(SOUND["lost"] + rotten + SOUND["lost"]) == 1
    assert engine.losses()["bad_record"] == 1


@pytest.mark.parametrize("kind", SOUND)
def test_a_torn_record_is_refused_at_every_byte(engine: Engine, kind: str) -> None:
    for cut in range(1, len(SOUND[kind])):
        assert engine.ingest(SOUND[kind][:cut]) == 0
    assert engine.losses()["bad_record"] == len(SOUND[kind]) - 1


def test_nothing_is_nothing(engine: Engine) -> None:
    assert engine.ingest(b"") == 0
    assert engine.losses()["bad_record"] == 0


def test_records_at_an_odd_address_pass(world: World) -> None:
    root, record = world.start_root(0)
    stream = record + world.fork(root)[1]
    for shift in range(1, 9):
        with Engine(16) as other:
            other.watch(0, "one", None)
            assert other.ingest(memoryview(bytes(shift) + stream)[shift:]) == 2
            assert other.counters(0).alive == 1


@given(junk=st.binary(max_size=400), kind=st.sampled_from(sorted(SOUND)), cut=st.integers(0, 400))
@settings(deadline=None, max_examples=300)
def test_any_bytes_leave_valid_lines_and_sane_counters(tools: type[Tools], junk: bytes, kind: str, cut: int) -> None:
    with Engine(8) as engine:
        engine.watch(0, "one", 0)
        record = SOUND[kind]
        header = struct.pack("=IHH", len(record), struct.unpack_from("=H", record, 4)[0], 0xFFFF)
        for stream in (junk, record[:cut] + junk, header + junk + bytes(len(record)), record + junk + record):
            engine.ingest(stream)
            counters = engine.counters(0)
            assert counters.alive == counters.spawned + counters.adopted - counters.exits or kind == "forget"
        tools.told(engine)


@given(edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6), data=st.data())
@settings(deadline=None, max_examples=300)
def test_a_spoiled_stream_leaves_valid_lines(
    tools: type[Tools], edits: list[tuple[int, int]], data: st.DataObject
) -> None:
    kinds = data.draw(st.lists(st.sampled_from(sorted(SOUND)), min_size=1, max_size=12))
    stream = bytearray(b"".join(SOUND[kind] for kind in kinds))
    for place, value in edits:
        stream[place % len(stream)] = value
    with Engine(4) as engine:
        engine.watch(0, "one", 1)
        engine.watch(1, "two", 0)
        engine.ingest(stream)
        tools.told(engine)
        engine.tree()

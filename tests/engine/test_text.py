"""Whatever bytes a process puts into its name, path or arguments: one valid, harmless line says them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from monitor.engine import Engine, lines
from monitor.engine._native import lib
from monitor.engine.records import Credentials, ProcessId, clock_record, exit_record, image_record

# Bytes that matter to UTF-8, JSON and terminals come up often, all others sometimes.
_DELICATE = (
    "ed a0 80|ed b0 80|c0 80|c1 bf|e0 80 80|e0 9f bf|f0 80 80 80|f0 8f bf bf|f4 90 80 80|f5 80 80 80|ef bf bd|ef bf bf|"
    "e2 80 a8|e2 80 a9|c2 80|c2 85|c2 9f|c2 a0|7f|1b|0a|0d|09|08|0c|22|5c|2f|e2 82|e2|f0 9f 98|f0 9f 98 80|ff|fe|80|bf"
)
DELICATE = tuple(bytes.fromhex(part) for part in _DELICATE.split("|"))
texts = st.lists(st.one_of(st.sampled_from(DELICATE), st.binary(max_size=4)), max_size=40).map(b"".join)
names = texts.map(lambda text: text.replace(b"\0", b""))


def _line(**texts: object) -> bytes:
    with Engine(4) as engine:
        engine.watch(0, "one", None)
        record = image_record(
            kind=lib.KW_EXEC,
            time_ns=2,
            process=ProcessId(7, 1),
            watches=1,
            **{"comm": b"", **texts},  # type: ignore[arg-type]
        )
        assert engine.ingest(record) == 1
        return engine.take().lines


def _is_utf8(part: bytes) -> bool:
    try:
        part.decode()
    except UnicodeDecodeError:
        return False
    return True


def _harmless(line: bytes) -> None:
    text = line.decode()
    assert text.endswith("\n")
    for character in text[:-1]:
        code = ord(character)
        assert code >= 0x20
        assert not 0x7F <= code < 0xA0
        assert code not in {0x2028, 0x2029}


@given(comm=names, exe=texts, script=texts, cwd=texts, argv=st.lists(names, max_size=8))
@settings(deadline=None, max_examples=400)
def test_any_bytes_make_one_valid_line_that_says_them(
    comm: bytes, exe: bytes, script: bytes, cwd: bytes, argv: list[bytes]
) -> None:
    line = _line(comm=comm, exe=exe, script=script, cwd=cwd, argv=argv)
    assert line.count(b"\n") == 1
    _harmless(line)
    event = lines.decode(line)
    assert isinstance(event, lines.Exec)
    kept = comm[: lib.KW_COMM_BYTES]
    said = [event.comm, event.exe or "", event.script or "", event.cwd or "", *(event.argv or ())]
    meant = [kept, exe, script, cwd, *argv]
    assert said == [part.decode(errors="replace") for part in meant]
    assert (event.lossy is True) == any(not _is_utf8(part) for part in meant)
    assert json.loads(line)["event"] == "exec"


def test_a_replacement_character_that_was_there_is_not_lossy() -> None:
    event = lines.decode(_line(comm="\ufffd".encode()))
    assert isinstance(event, lines.Exec)
    assert (event.comm, event.lossy) == ("\ufffd", UNSET)


def test_a_name_ends_at_its_first_zero() -> None:
    event = lines.decode(_line(comm=b"sh\0old-name"))
    assert isinstance(event, lines.Exec)
    assert event.comm == "sh"


def test_an_argument_cut_before_its_end_is_kept() -> None:
    argument = b"a" * (lib.KW_ARGV_BYTES - 3)
    event = lines.decode(_line(argv=[argument, b"bcd", b"e"]))
    assert isinstance(event, lines.Exec)
    assert event.argv == (argument.decode(), "bc")
    assert event.truncated is True


def test_arguments_as_empty_as_they_were() -> None:
    for argv in ([], [b""], [b"", b""], [b"a", b""], [b"", b"a"]):
        event = lines.decode(_line(argv=argv))
        assert isinstance(event, lines.Exec)
        assert event.argv == tuple(argument.decode() for argument in argv)


@given(
    boot_ns=st.integers(1, 2**62),
    wall_ns=st.one_of(st.integers(0, 2**63 - 1), st.integers(1_600_000_000 * 10**9, 1_900_000_000 * 10**9)),
)
@settings(deadline=None, max_examples=400)
def test_time_is_the_calendar_s(boot_ns: int, wall_ns: int) -> None:
    with Engine(4) as engine:
        engine.watch(0, "one", None)
        engine.ingest(clock_record(time_ns=1, wall_ns=wall_ns))
        engine.ingest(exit_record(time_ns=boot_ns, process=ProcessId(7, 1), watches=1, comm=b"x"))
        event = lines.decode(engine.take().lines)
    seconds, rest = divmod(min(boot_ns + wall_ns, 2**64 - 1), 10**9)
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    assert event.time == f"{moment:%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def test_a_clock_set_before_1970_stops_at_1970() -> None:
    with Engine(4) as engine:
        engine.watch(0, "one", None)
        engine.ingest(clock_record(time_ns=1, wall_ns=-(2**63)))
        engine.ingest(exit_record(time_ns=5, process=ProcessId(7, 1), watches=1, comm=b"x"))
        assert lines.decode(engine.take().lines).time == "1970-01-01T00:00:00.000000000Z"


@given(pid=st.integers(1, 2**32 - 1), start_ns=st.integers(0, 2**64 - 1), uid=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_numbers_are_written_as_they_are(pid: int, start_ns: int, uid: int) -> None:
    with Engine(4) as engine:
        engine.watch(0, "one", None)
        engine.ingest(
            image_record(
                kind=lib.KW_EXEC,
                time_ns=1,
                process=ProcessId(pid, start_ns),
                watches=1,
                comm=b"x",
                credentials=Credentials(uid, uid // 2),
            )
        )
        event = lines.decode(engine.take().lines)
    assert isinstance(event, lines.Exec)
    assert (event.pid, event.process_id) == (pid, f"{pid}-{start_ns // 10_000_000}")
    assert (event.uid, event.gid) == (uid, uid // 2)

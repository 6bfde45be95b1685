"""The record file: what goes in comes out, and whatever else is in a file is refused at a named place."""

from __future__ import annotations

import os
import resource
import signal
import struct
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor.capture.recordfile import MAX_RECORD_BYTES, RecordedWatch, RecordReader, RecordWriter
from monitor.capture.replay import ReplayCapture
from monitor.capture.rules import FileIdentity
from monitor.engine import Engine, lines
from monitor.engine._native import ffi, lib
from monitor.engine.records import (
    Lineage,
    ProcessId,
    clock_record,
    exit_record,
    fork_record,
    image_record,
)
from monitor.errors import RecordFileInvalid
from monitor.expect import Expect

if TYPE_CHECKING:
    from pathlib import Path

WATCH = RecordedWatch(slot=3, name="myapp", kind="process", value="myapp", expect=Expect(child_processes=0))
WALL_NS = 1_700_000_000_000_000_000
ROOT, CHILD = ProcessId(100, 5_000_000_000), ProcessId(101, 6_000_000_000)
BIT = 1 << WATCH.slot
HEADER_BYTES = 32  # magic, byte order, layout, wall clock, length of the table, zero

LIFE = [
    image_record(
        kind=lib.KW_EXEC,
        time_ns=5_000_000_000,
        process=ROOT,
        watches=BIT,
        roots=BIT,
        fresh=BIT,
        cause=lib.KW_CAUSE_EXEC,
        comm=b"myapp",
        exe=b"/opt/myapp",
        argv=[b"myapp", b"-v"],
    ),
    fork_record(
        time_ns=6_000_000_000, process=CHILD, parent=ROOT, watches=BIT, comm=b"myapp", lineage=Lineage(ROOT, 1), uid=0
    ),
    exit_record(time_ns=7_000_000_000, process=CHILD, watches=BIT, comm=b"myapp", status=256),
    exit_record(time_ns=8_000_000_000, process=ROOT, watches=BIT, roots=BIT, comm=b"myapp", status=9),
]


def _write(path: Path, records: bytes) -> None:
    with RecordWriter(path, [WATCH], WALL_NS) as writer:
        writer.append(records)
        writer.flush()


def _read(path: Path) -> tuple[bytes, str]:
    """All that is delivered, and the refusal that follows, if any."""
    delivered = b""
    with RecordReader(path) as reader:
        try:
            for chunk in reader.chunks():
                delivered += chunk
        except RecordFileInvalid as refusal:
            return delivered, str(refusal)
    return delivered, ""


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    _write(path, b"".join(LIFE))
    with RecordReader(path) as reader:
        assert reader.wall_ns == WALL_NS
        assert reader.watches == (WATCH,)
        assert b"".join(reader.chunks()) == b"".join(LIFE)
        assert reader.last_boot_ns == 8_000_000_000


def test_chunks_are_whole_records(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    record = LIFE[1]
    count = 4 * MAX_RECORD_BYTES // len(record) + 1
    _write(path, record * count)
    with RecordReader(path) as reader:
        chunks = list(reader.chunks(chunk_bytes=1))
    assert len(chunks) > 1
    assert all(len(chunk) % len(record) == 0 for chunk in chunks)
    assert b"".join(chunks) == record * count


def test_file_is_the_owners_alone_and_no_link_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    _write(path, LIFE[0])
    assert path.stat().st_mode & 0o777 == 0o600
    link = tmp_path / "link.rec"
    link.symlink_to(path)
    with pytest.raises(OSError, match="Too many levels"):
        RecordWriter(link, [WATCH], WALL_NS)
    assert _read(path) == (LIFE[0], "")


def test_full_disk_leaves_whole_records(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with RecordWriter(path, [WATCH], WALL_NS) as writer:
            writer.append(LIFE[0])
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))
            with pytest.raises(OSError, match="File too large"):
                writer.append(LIFE[1])
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert _read(path) == (LIFE[0], "")
            writer.append(LIFE[2])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert _read(path) == (LIFE[0] + LIFE[2], "")


def test_file_torn_at_any_byte_gives_all_whole_records_and_the_place(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    _write(path, b"".join(LIFE))
    whole = path.read_bytes()
    begin = len(whole) - sum(map(len, LIFE))
    ends = [begin]
    for record in LIFE:
        ends.append(ends[-1] + len(record))
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        if length < begin:
            with pytest.raises(RecordFileInvalid, match=f"at byte {length}"):
                RecordReader(path)
            continue
        last = max(end for end in ends if end <= length)
        delivered, refusal = _read(path)
        assert delivered == whole[begin:last]
        if length == last:
            assert refusal == ""
        else:
            assert f"within the record at byte {last}: {length - last} bytes" in refusal
            assert str(path) in refusal


@pytest.mark.parametrize("size", [0, 8, 24, 31, 33, 65, 0xFFFFFFF8, MAX_RECORD_BYTES + 8])
def test_size_that_no_record_has_ends_the_file(tmp_path: Path, size: int) -> None:
    path = tmp_path / "run.rec"
    _write(path, LIFE[0] + struct.pack("=I", size) + bytes(200))
    begin = path.stat().st_size - len(LIFE[0]) - 204
    delivered, refusal = _read(path)
    assert delivered == LIFE[0]
    assert f"at byte {begin + len(LIFE[0])} (a record of {size} bytes does not exist)" in refusal


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (0, b"KINWATCX", "not a record file"),
        (8, struct.pack("=I", 0x04030201), "other byte order"),
        (12, struct.pack("=I", lib.KW_LAYOUT + 1), f"layout {lib.KW_LAYOUT + 1}, this kinwatch reads layout"),
        (24, struct.pack("=I", 1 << 31), "watch table claims"),
        (HEADER_BYTES, b"\xff", "watch table is damaged"),
    ],
)
def test_foreign_file_is_refused_with_the_reason(tmp_path: Path, offset: int, value: bytes, reason: str) -> None:
    path = tmp_path / "run.rec"
    _write(path, LIFE[0])
    damaged = bytearray(path.read_bytes())
    damaged[offset : offset + len(value)] = value
    path.write_bytes(damaged)
    with pytest.raises(RecordFileInvalid, match=reason):
        RecordReader(path)


@pytest.mark.parametrize(
    "table", [b"{}", b'[{"slot":64,"name":"a","kind":"pid","value":"1"}]', b'[{"slot":0}]', b"[1]"]
)
def test_watch_table_of_another_shape_is_refused(tmp_path: Path, table: bytes) -> None:
    path = tmp_path / "run.rec"
    header = struct.pack("=8sIIqII", b"KINWATCH", 0x01020304, lib.KW_LAYOUT, 0, len(table), 0)
    path.write_bytes(header + table)
    with pytest.raises(RecordFileInvalid, match="watch table is damaged"):
        RecordReader(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(tail=st.binary(max_size=2000), keep=st.integers(0, 4))
def test_hostile_bytes_are_delivered_or_refused(tmp_path: Path, tail: bytes, keep: int) -> None:
    path = tmp_path / "hostile.rec"
    good = b"".join(LIFE[:keep])
    _write(path, good + tail)
    delivered, refusal = _read(path)
    assert delivered.startswith(good)
    assert (good + tail).startswith(delivered)
    assert bool(refusal) == (delivered != good + tail)
    with Engine(64) as engine:
        capture = ReplayCapture(engine, path)
        try:
            capture.start()
            while capture.poll():
                pass
        except RecordFileInvalid as error:
            assert str(error) == refusal  # noqa: PT017 - not every input is refused
        finally:
            capture.close(keep=False)
        for line in engine.take().lines.splitlines():
            lines.decode(line)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=300))
def test_any_file_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.rec"
    path.write_bytes(content)
    with pytest.raises(RecordFileInvalid, match=r"any\.rec"):
        RecordReader(path)


def test_replay_tells_the_lines_of_the_run(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    _write(path, clock_record(time_ns=1, wall_ns=WALL_NS) + b"".join(LIFE))
    with Engine(64) as live:
        live.watch(WATCH.slot, WATCH.name, WATCH.expect.child_processes)
        live.ingest(clock_record(time_ns=1, wall_ns=WALL_NS) + b"".join(LIFE))
        expected = live.take()
    with Engine(64) as engine:
        capture = ReplayCapture(engine, path)
        capture.start()
        assert capture.poll() is True
        assert capture.poll() is False
        batch = engine.take()
        snapshot = capture.snapshot(None, 0)
        capture.close(keep=False)
    assert batch.lines == expected.lines
    assert (batch.alarms, batch.clears) == (1, 1)
    assert snapshot.boot_ns == 8_000_000_000
    assert snapshot.wall_ns == WALL_NS + 8_000_000_000
    (watch,) = snapshot.watches
    assert (watch.spawned, watch.exits, watch.alive, watch.root_exits) == (1, 1, 0, 1)


def test_replay_judges_by_other_limits_when_told(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    _write(path, b"".join(LIFE))
    with Engine(64) as engine:
        capture = ReplayCapture(engine, path, {"myapp": Expect()})
        capture.start()
        capture.poll()
        assert engine.take().alarms == 0
        capture.close(keep=False)


def test_replay_judges_by_the_files_of_the_run_and_by_paths_when_told_otherwise(tmp_path: Path) -> None:
    """Of two images with the expected path, the recorded run knew one as the file; a new configuration knows none."""
    file = FileIdentity(path="/bin/cat", device=1, stat_device=2, inode=3, ctime_ns=4, size=5)
    expect = Expect(executables=("/bin/cat",), edges=("/opt/myapp -> /bin/cat",), depth=1, uids=(0,), memfd=False)
    watch = msgspec.structs.replace(WATCH, expect=expect, files=(file,), enforce="dry-run")
    images = [
        image_record(
            kind=lib.KW_EXEC,
            time_ns=6_000_000_000 + inode,
            process=CHILD,
            watches=BIT,
            comm=b"cat",
            exe=b"/bin/cat",
            device=device,
            inode=inode,
        )
        for device, inode in ((1, 3), (2, 3), (1, 4))
    ]
    path = tmp_path / "run.rec"
    with RecordWriter(path, [watch], WALL_NS) as writer:
        writer.append(b"".join([*LIFE[:2], *images, *LIFE[2:]]))
    with RecordReader(path) as reader:
        assert reader.watches == (watch,)
    told = {}
    for name, expects in (("recorded", {}), ("told", {"myapp": Expect(executables=("/bin/cat",))})):
        with Engine(64) as engine:
            capture = ReplayCapture(engine, path, expects)
            capture.start()
            assert capture.poll()
            decoded = [lines.decode(line) for line in engine.take().lines.splitlines()]
            told[name] = [line.behavior for line in decoded if isinstance(line, lines.Alarm)]
            assert capture.snapshot(None, 0).watches[0].enforced == 0
            capture.close(keep=False)
    assert told == {"recorded": ["edges", "executables"], "told": []}


def test_what_was_expected_of_the_network_is_recorded_with_the_watch(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    expect = Expect(
        child_processes=0, destinations=("10.0.0.0/8", "[fd00::/8]:443"), destination_names=("*.a",), listening_ports=()
    )
    watch = msgspec.structs.replace(WATCH, expect=expect)
    RecordWriter(path, [watch], WALL_NS).close()
    with RecordReader(path) as reader:
        assert reader.watches == (watch,)
        assert reader.watches[0].expect == expect
    assert WATCH.expect == Expect(child_processes=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"destinations": ("x",)},
        {"destinations": ("10.0.0.0/8:0",)},
        {"destination_names": ("a b",)},
        {"listening_ports": (0,)},
        {"listening_ports": (65536,)},
        {"executables": ("bin/sh",)},
        {"executables": ("/a",) * 257},
        {"edges": ("/bin/sh",)},
        {"depth": -1},
        {"uids": (-1,)},
        {"nothing": 1},
    ],
)
def test_a_recorded_expectation_that_is_none_is_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    path = tmp_path / "run.rec"
    RecordWriter(path, [WATCH], WALL_NS).close()
    right = msgspec.json.encode([WATCH])
    table = msgspec.json.encode([msgspec.structs.asdict(WATCH) | {"expect": wrong}])
    header = path.read_bytes()[: -len(right)]
    path.write_bytes(header[:24] + len(table).to_bytes(4, sys.byteorder) + header[28:] + table)
    with pytest.raises(RecordFileInvalid, match="watch"):
        RecordReader(path)


def test_stopped_replay_delivers_no_more(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    _write(path, b"".join(LIFE))
    with Engine(64) as engine:
        capture = ReplayCapture(engine, path)
        capture.start()
        capture.stop()
        assert capture.poll() is False
        capture.close(keep=False)


def test_longest_record_fits_the_limit() -> None:
    longest = image_record(
        kind=lib.KW_EXEC,
        time_ns=1,
        process=ROOT,
        watches=BIT,
        comm=b"x" * 16,
        exe=b"e" * lib.KW_PATH_BYTES,
        script=b"s" * lib.KW_PATH_BYTES,
        argv=[b"a" * lib.KW_ARGV_BYTES],
        cwd=b"c" * lib.KW_PATH_BYTES,
    )
    assert len(longest) <= MAX_RECORD_BYTES
    assert ffi.sizeof("struct kw_header") == 32


def test_closing_twice_closes_once(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "run.rec", [WATCH], WALL_NS)
    writer.close()
    other = os.open(tmp_path, os.O_RDONLY)  # takes the number that was freed
    try:
        writer.close()
        os.fstat(other)
    finally:
        os.close(other)

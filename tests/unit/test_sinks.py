"""Sinks: whole lines or counted losses, in order, and nobody waits for a slow reader."""

from __future__ import annotations

import errno
import os
import pty
import re
import stat
import subprocess
import threading
import unicodedata
from datetime import UTC
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.errors import ConfigInvalid
from monitor.sinks import Fanout
from monitor.sinks.stream import StreamSink
from monitor.sinks.table import TableSink, event_style, log_sink, what
from monitor.sinks.text import UNSAFE, columns, duration, fit, safe, size, wants_colour

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE_S = 20.0


class Gate:
    """A sink that writes only while it is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.data: list[bytes] = []
        self.closed = False

    def write(self, lines: bytes) -> int:
        """Remember."""
        self.entered.set()
        assert self.gate.wait(PATIENCE_S)
        self.data.append(lines)
        return 0

    def reopen(self) -> None:
        """Remember."""
        self.data.append(b"<reopen>")

    def close(self) -> None:
        """Remember."""
        self.closed = True


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "kinwatch-test", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_slow_sink_costs_lines_and_never_the_caller() -> None:
    gate = Gate()
    losses: list[int] = []
    fanout = Fanout([gate], on_loss=losses.append, queue_batches=2)
    try:
        fanout.put(b"1\n", 1)
        assert gate.entered.wait(PATIENCE_S)
        fanout.put(b"2\n", 1)
        fanout.put(b"3\n", 1)
        fanout.put(b"4\n5\n", 2)
        fanout.put(b"6\n", 1)
        assert fanout.dropped == 3
        assert losses == []
        gate.gate.set()
        assert fanout.flush(PATIENCE_S)
    finally:
        gate.gate.set()
        assert fanout.close(PATIENCE_S) == 3
    assert gate.data == [b"1\n", b"2\n", b"3\n"]
    assert losses == [3]
    assert gate.closed


def test_a_queue_is_bounded_in_bytes_too_but_takes_one_batch_of_any_size() -> None:
    gate = Gate()
    fanout = Fanout([gate], queue_bytes=10)
    try:
        fanout.put(b"1\n", 1)
        assert gate.entered.wait(PATIENCE_S)
        fanout.put(b"x" * 99 + b"\n", 1)
        fanout.put(b"2\n", 1)
        assert fanout.dropped == 1
    finally:
        gate.gate.set()
        fanout.close(PATIENCE_S)
    assert gate.data == [b"1\n", b"x" * 99 + b"\n"]


def test_a_stuck_sink_does_not_keep_the_program_from_ending() -> None:
    reading, writing = os.pipe()
    try:
        sink = StreamSink(writing)
        fanout = Fanout([sink])
        fanout.put(b"x" * (1 << 20) + b"\n", 1)
        fanout.put(b"left\nover\n", 2)
        assert fanout.close(0.2) == 3
        assert fanout._writer.is_alive()
        assert fanout._writer.daemon
    finally:
        with os.fdopen(reading, "rb") as pipe:
            assert pipe.read(1 << 20)
            fanout._writer.join(PATIENCE_S)
            os.close(writing)


def test_everything_queued_is_written_before_close_ends() -> None:
    gate = Gate()
    gate.gate.set()
    fanout = Fanout([gate])
    for number in range(500):
        fanout.put(b"%d\n" % number, 1)
    assert fanout.close(PATIENCE_S) == 0
    assert gate.data == [b"%d\n" % number for number in range(500)]
    fanout.put(b"late\n", 1)
    assert fanout.dropped == 1


def test_a_reopen_stands_between_the_lines_before_and_after_it() -> None:
    gate = Gate()
    fanout = Fanout([gate])
    fanout.put(b"1\n", 1)
    fanout.reopen()
    fanout.put(b"2\n", 1)
    gate.gate.set()
    fanout.close(PATIENCE_S)
    assert gate.data == [b"1\n", b"<reopen>", b"2\n"]


def test_a_reader_that_went_away_ends_its_sink_and_no_other() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    broken, gate = StreamSink(writing), Gate()
    gate.gate.set()
    ended: list[object] = []
    fanout = Fanout([broken, gate], on_end=ended.append)
    fanout.put(b"1\n", 1)
    fanout.put(b"2\n", 1)
    assert fanout.close(PATIENCE_S) == 1
    assert ended == [broken]
    assert gate.data == [b"1\n", b"2\n"]
    os.close(writing)


def test_a_sink_with_a_bug_ends_and_the_others_go_on() -> None:
    class Buggy(Gate):
        def write(self, lines: bytes) -> int:
            """Fail."""
            raise ZeroDivisionError(lines)

    gate = Gate()
    gate.gate.set()
    troubles: list[str] = []
    fanout = Fanout([Buggy(), gate], on_trouble=troubles.append)
    fanout.put(b"1\n", 1)
    assert fanout.close(PATIENCE_S) == 1
    assert gate.data == [b"1\n"]
    assert len(troubles) == 1
    assert "ZeroDivisionError" in troubles[0]


def test_a_new_file_is_for_its_owner_alone_and_an_old_one_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "new" / "events.jsonl"
    for number in range(2):
        sink = StreamSink.open(str(path))
        assert sink.write(b"%d\n" % number) == 0
        sink.close()
    assert path.read_bytes() == b"0\n1\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_line_torn_by_a_crash_is_ended_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event":"fork"}\n{"event":"ex')
    sink = StreamSink.open(str(path))
    sink.write(b"{}\n")
    sink.close()
    assert path.read_bytes() == b'{"event":"fork"}\n{"event":"ex\n{}\n'


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(ConfigInvalid, match="symbolic link"):
        StreamSink.open(str(tmp_path / "link"))


def test_a_pipe_without_a_reader_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigInvalid, match="nobody reads this pipe"):
        StreamSink.open(str(tmp_path / "pipe"))


def test_a_rotated_file_is_left_and_the_path_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    sink = StreamSink.open(str(path))
    sink.write(b"1\n")
    path.rename(tmp_path / "events.1")
    sink.write(b"2\n")
    sink.reopen()
    sink.write(b"3\n")
    sink.close()
    assert (tmp_path / "events.1").read_bytes() == b"1\n2\n"
    assert path.read_bytes() == b"3\n"


def test_a_reopen_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "events.jsonl"
    troubles: list[str] = []
    sink = StreamSink.open(str(path))
    path.parent.rename(tmp_path / "away")
    path.parent.write_text("in the way")
    fanout = Fanout([sink], on_trouble=troubles.append)
    fanout.reopen()
    fanout.put(b"1\n", 1)
    fanout.close(PATIENCE_S)
    assert (tmp_path / "away" / "events.jsonl").read_bytes() == b"1\n"
    assert len(troubles) == 1
    assert "the old file stays in use" in troubles[0]


def test_a_full_disk_costs_counted_lines_and_leaves_no_torn_one(small_disk: Path) -> None:
    path = small_disk / "events.jsonl"
    hog = small_disk / "hog"
    hog.write_bytes(b"x" * 40_000)
    sink = StreamSink.open(str(path))
    troubles: list[str] = []
    fanout = Fanout([sink], on_trouble=troubles.append)
    line = b'{"event":"fork","text":"' + b"y" * 974 + b'"}\n'
    for _ in range(5):
        fanout.put(line * 20, 20)
        assert fanout.flush(PATIENCE_S)
    assert fanout.dropped > 0
    hog.unlink()
    fanout.put(line, 1)
    dropped = fanout.close(PATIENCE_S)
    lines = path.read_bytes().splitlines(keepends=True)
    assert set(lines) == {line}
    assert len(lines) + dropped == 101
    assert len(troubles) == 1


@given(
    st.lists(st.binary(max_size=20).map(lambda text: text.replace(b"\n", b"") + b"\n"), min_size=1, max_size=20),
    st.lists(st.integers(0, 40), max_size=30),
)
def test_whatever_part_a_write_takes_no_line_is_torn_and_the_sum_is_right(lines: list[bytes], parts: list[int]) -> None:
    """The disk takes `parts` bytes at a time and then is full for that write."""
    out = bytearray()
    room = iter(parts)

    class Disk(StreamSink):
        def _push(self, data: bytes) -> int:
            took = min(len(data), next(room, len(data)))
            out.extend(data[:took])
            return took

    sink = Disk(-1)
    lost = sum(sink.write(line) for line in lines)
    if sink._rest:
        out.extend(sink._rest)
    kept = re.findall(rb"[^\n]*\n", bytes(out))
    assert b"".join(kept) == bytes(out)
    assert len(kept) + lost == len(lines)
    left = iter(lines)
    assert all(line in left for line in kept)


def test_an_error_that_is_no_full_disk_is_not_hidden() -> None:
    sink = StreamSink(-1)
    with pytest.raises(OSError, match="Bad file") as caught:
        sink.write(b"1\n")
    assert caught.value.errno == errno.EBADF


def test_a_terminal_gets_a_table_and_a_pipe_gets_json() -> None:
    keyboard, screen = pty.openpty()
    try:
        terminal = StreamSink(screen)
        environ = {"TERM": "xterm"}
        assert isinstance(log_sink("-", "auto", environ, stdout=terminal), TableSink)
        assert log_sink("-", "json", environ, stdout=terminal) is terminal
        reading, writing = os.pipe()
        pipe = StreamSink(writing)
        assert log_sink("-", "auto", environ, stdout=pipe) is pipe
        os.close(reading)
        os.close(writing)
    finally:
        os.close(screen)
        os.close(keyboard)


@pytest.mark.parametrize(
    ("environ", "terminal", "wanted"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm"}, False, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, True, False),
        ({}, True, False),
    ],
)
def test_colour_is_for_terminals_that_can_and_people_who_want_it(
    environ: dict[str, str],
    terminal: bool,  # noqa: FBT001 - a table of cases
    wanted: bool,  # noqa: FBT001
) -> None:
    assert wants_colour(environ, terminal=terminal) is wanted


class Paper:
    """A terminal of a given width that remembers."""

    def __init__(self, width: int) -> None:
        self.text = ""
        self._width = width

    def write(self, lines: bytes) -> int:
        """Remember."""
        self.text += lines.decode()
        return 0

    def width(self) -> int:
        """As given."""
        return self._width


def table(*lines: dict[str, Any], width: int = 200, colour: bool = False, watch_column: bool = False) -> list[str]:
    """The rows under the heading."""
    paper = Paper(width)
    sink = TableSink(paper, colour=colour, watch_column=watch_column, timezone=UTC)
    sink.write(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    return paper.text.splitlines()[1:]


TIME = "2026-11-25T03:14:06.102345678Z"
TCP = {"protocol": "tcp", "family": "ipv4", "local": "10.0.0.1:40000", "remote": "10.0.0.2:443"}


def test_a_row_says_when_what_who_and_how() -> None:
    exec_line = {
        "time": TIME, "event": "exec", "watch": "myapp", "pid": 4243, "process_id": "4243-9", "ppid": 1, "depth": 2,
        "comm": "cat", "exe": "/usr/bin/cat", "argv": ["cat", "a b", "$(x)"], "uid": 0, "gid": 0,
    }  # fmt: skip
    assert table(exec_line) == [
        "03:14:06.102  exec        4243    └ cat               /usr/bin/cat 'a b' '$(x)'",
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"event": "exit", "exit_code": 3, "duration_ms": 1500}, "exit 3 after 1.5 s"),
        (
            {"event": "exit", "signal": 11, "core": True, "duration_ms": 2},
            "killed by signal 11, core dumped after 2 ms",
        ),
        ({"event": "exit"}, "ended"),
        ({"event": "fork", "parent_pid": 7}, "child of 7"),
        ({"event": "root", "cause": "running", "exe": "/bin/a"}, "was running /bin/a"),
        ({"event": "root", "cause": "exec", "exe": "/bin/a", "argv": ["b", "c"]}, "started /bin/a: b c"),
        ({"event": "adopt", "inferred": True, "exe": "/bin/a"}, "was running (by its session) /bin/a"),
        ({"event": "exec", "exe": "/bin/sh", "script": "/x.sh", "argv": ["sh"]}, "[script /x.sh] /bin/sh"),
        ({"event": "exec", "exe": "/memfd:x", "memfd": True}, "[memfd] /memfd:x"),
        ({"event": "lost", "stage": "ring_full", "count": 12}, "12 details lost: ring_full"),
        ({"event": "connect", **TCP}, "tcp 10.0.0.1:40000 → 10.0.0.2:443"),
        (
            {"event": "connect", **TCP, "name": "a.example", "result": "ECONNREFUSED"},
            "tcp 10.0.0.1:40000 → 10.0.0.2:443 (a.example) ECONNREFUSED",
        ),
        ({"event": "accept", **TCP, "cause": "running"}, "tcp 10.0.0.1:40000 ← 10.0.0.2:443 was there"),
        ({"event": "peer", **TCP, "protocol": "udp"}, "udp 10.0.0.1:40000 ↔ 10.0.0.2:443"),
        ({"event": "listen", "protocol": "tcp", "local": "[::]:80"}, "tcp [::]:80"),
        (
            {"event": "close", **TCP, "bytes_in": 999, "bytes_out": 1_500_000},
            "tcp 10.0.0.1:40000 → 10.0.0.2:443, 999 B in, 1.5 MB out",
        ),
        ({"event": "socket", "family": "bluetooth", "type": "raw"}, "bluetooth raw"),
        ({"event": "dns", "name": "a.example", "type": "A"}, "A a.example?"),
        (
            {
                "event": "dns",
                "name": "a.example",
                "type": "A",
                "rcode": "NOERROR",
                "answers": ["b.example", "10.0.0.2"],
            },
            "A a.example → b.example, 10.0.0.2",
        ),
        ({"event": "dns", "name": "a.example", "type": "A", "rcode": "NOERROR"}, "A a.example → no answer"),
        ({"event": "dns", "name": "a.example", "type": "A", "rcode": "NXDOMAIN"}, "A a.example → NXDOMAIN"),
        ({"event": "dns", "name": "", "type": "", "malformed": True}, "? ?: malformed"),
        ({"event": "new-kind", "time": TIME, "key": "v"}, "key=v"),
    ],
)
def test_every_event_has_words(line: dict[str, Any], words: str) -> None:
    assert what(line) == words


def test_an_alarm_is_red_and_its_end_green_and_neither_is_cut() -> None:
    judged = {
        "watch": "myapp", "behavior": "child_processes", "metric": "num_child_procs_myapp",
        "criteria": {"comparisonOperator": "less-than-equals", "value": {"number": 0}},
    }  # fmt: skip
    lineage = [{"pid": number, "process_id": f"{number}-1", "comm": "myapp"} for number in (4242, 4243)]
    alarm = {"time": TIME, "event": "alarm", **judged, "value": 1, "since": TIME, "lineage": lineage}
    clear = {"time": "2026-11-25T03:14:09.102345678Z", "event": "clear", **judged, "value": 0, "since": TIME}
    first, second = table(alarm, clear, width=60, colour=True)
    assert "\x1b[1;31m1 descendant alive, at most 0 expected: myapp 4242 → myapp 4243\x1b[0m" in first
    assert "\x1b[32m0 descendants alive, at most 0 expected; over after 3.0 s\x1b[0m" in second


@pytest.mark.parametrize(
    ("metric", "operator", "value", "wanted", "words"),
    [
        ("destination_ips", "in-cidr-set", ["8.8.8.8", "1.1.1.1"], {"cidrs": ["10.0.0.0/8", "fd00::/8"]},
         "destination_ips_w is 8.8.8.8, 1.1.1.1, only 10.0.0.0/8, fd00::/8 expected"),
        ("listening_ports", "in-set", [22], {"numbers": []}, "listening_ports_w is 22, none expected"),
        ("listening_ports", "in-set", [], {"numbers": [80]}, "listening_ports_w is none, only 80 expected"),
    ],
)  # fmt: skip
def test_an_alarm_about_the_network_names_what_is_not_expected(
    metric: str, operator: str, value: list[Any], wanted: dict[str, Any], words: str
) -> None:
    criteria = {"comparisonOperator": operator, "value": wanted}
    assert (
        what({"event": "alarm", "behavior": metric, "metric": f"{metric}_w", "value": value, "criteria": criteria})
        == words
    )


@pytest.mark.parametrize(
    ("behavior", "value", "wanted", "cause", "words"),
    [
        ("executables", ["/bin/sh"], {"strings": ["/bin/cat"]}, {"exe": "/bin/sh", "argv": ["sh", "-c", "id"]},
         "child_exes_w is /bin/sh, only /bin/cat expected: /bin/sh -c id: myapp 1 → sh 2"),
        ("memfd", ["/memfd:x"], {"strings": []}, {"exe": "/memfd:x"},
         "memfd_w is /memfd:x, none expected: /memfd:x: myapp 1 → sh 2"),
        ("uids", [0], {"numbers": [33]}, {}, "uids_w is 0, only 33 expected: myapp 1 → sh 2"),
    ],
)  # fmt: skip
def test_an_alarm_about_a_rule_names_what_was_executed(
    behavior: str, value: list[Any], wanted: dict[str, Any], cause: dict[str, Any], words: str
) -> None:
    metric = "child_exes_w" if behavior == "executables" else f"{behavior}_w"
    criteria = {"comparisonOperator": "in-set", "value": wanted}
    lineage = [{"pid": 1, "comm": "myapp"}, {"pid": 2, "comm": "sh"}]
    line = {"event": "alarm", "behavior": behavior, "metric": metric, "value": value, "criteria": criteria, **cause}
    assert what({**line, "lineage": lineage}) == words


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"action": "kill", "reason": "executables", "exe": "/bin/sh"}, "killed, breaks executables: /bin/sh"),
        ({"action": "kill", "reason": "depth", "delegated": True}, "killed from user space, breaks depth"),
        ({"action": "would", "reason": "uids", "dry_run": True}, "would be killed, breaks uids"),
        ({"action": "spared", "reason": "depth"}, "spared, enforcement has stopped, breaks depth"),
    ],
)
def test_what_was_done_is_said(told: dict[str, Any], words: str) -> None:
    assert what({"event": "enforced", "watch": "w", "pid": 1, "comm": "sh", **told}) == words


def test_what_failed_on_the_network_stands_out() -> None:
    assert event_style({"event": "connect", "result": "ETIMEDOUT"}) == "yellow"
    assert event_style({"event": "dns", "rcode": "NXDOMAIN"}) == "yellow"
    assert [event_style(line) for line in ({"event": "connect"}, {"event": "dns", "rcode": "NOERROR"})] == ["", ""]


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB"), (2 * 10**9, "2.0 GB"),
     (10**12, "1.0 TB"), (10**16, "10000.0 TB")],
)  # fmt: skip
def test_a_size_reads_well(count: int, words: str) -> None:
    assert size(count) == words


@pytest.mark.parametrize("line", [b"rubbish \x1b[31m", b'{"time": 1, "depth": "x", "comm": "a"}', b"[]"])
def test_a_line_that_is_no_event_is_shown_as_it_is_and_harmless(line: bytes) -> None:
    paper = Paper(200)
    assert TableSink(paper, colour=False).write(line + b"\n") == 0
    assert paper.text.splitlines()[1] == line.decode().replace("\x1b", "\\x1b")


def test_a_row_is_cut_to_the_width_of_the_terminal() -> None:
    line = {"time": TIME, "event": "exec", "pid": 1, "comm": "日本", "exe": "/usr/bin/x", "argv": ["x", "語" * 99]}
    (row,) = table(line, width=90)
    assert columns(row) <= 90
    assert row.endswith("…")


def test_several_watches_get_a_column() -> None:
    line = {"time": TIME, "event": "fork", "watch": "w" * 20, "pid": 1, "comm": "a", "depth": 1, "parent_pid": 2}
    assert "wwwwwwwwwww…" in table(line, watch_column=True)[0]
    assert "w" not in table(line)[0]


@given(st.text())
def test_nothing_that_could_act_on_a_terminal_gets_through(text: str) -> None:
    line = {"time": TIME, "event": "exec", "pid": 1, "comm": text[:16], "exe": text, "argv": [text, text]}
    if any(0xD800 <= ord(char) <= 0xDFFF for char in text):
        assert not any(unicodedata.category(char) in UNSAFE for char in safe(text))
        return
    (row,) = table(line)
    assert not any(unicodedata.category(char) in UNSAFE for char in row)


@given(st.text(), st.integers(1, 40))
def test_what_fits_is_kept_and_what_does_not_is_cut(text: str, width: int) -> None:
    cut = fit(text, width)
    assert columns(cut) <= width or cut == "…"
    assert cut == text or cut.endswith("…")


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [
        (0, "0 ms"), (999, "999 ms"), (1000, "1.0 s"), (59_900, "59.9 s"), (60_000, "1 min"), (200_000, "3 min 20 s"),
        (3_600_000, "1 h"), (7_500_000, "2 h 5 min"), (86_400_000, "1 d"), (273_600_000, "3 d 4 h"),
    ],
)  # fmt: skip
def test_a_span_of_time_reads_well(milliseconds: int, words: str) -> None:
    assert duration(milliseconds) == words

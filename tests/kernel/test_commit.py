"""Records leave the kernel's ring when they are committed; until then the next capture that takes over reads them."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from monitor.capture.core import CoreCapture
from monitor.engine import Engine
from monitor.engine.lines import Alarm, Clear, Exec, Exit, Fork, Lost, Root, decode
from monitor.expect import Expect
from monitor.schema import Capture as CaptureTable
from monitor.watch import Watch
from tests.contract.conftest import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from monitor.detect.snapshot import WatchSnapshot
    from monitor.engine.lines import Line
    from tests.contract.conftest import Programs

ROOT = Path(__file__).parents[2]
ALARM_AND_CLEAR: list[type] = [Alarm, Clear]
OBJECT = ROOT / "monitor" / "capture" / "kinwatch.bpf.o"
PAGE_BYTES = 4096
READER = """
import sys
from monitor.capture.core import CoreCapture
from monitor.engine import Engine
from monitor.schema import Capture
from monitor.expect import Expect
from monitor.watch import Watch

name, pins = sys.argv[1:]
engine = Engine()
watch = Watch(name=name, kind="process", value=name, expect=Expect(child_processes=0))
capture = CoreCapture(engine, (watch,), Capture(), pins=pins)
capture.start()
print("watching", flush=True)
lines = b""
while lines.count(b'"event":"exit"') < 4:
    capture.poll()
    lines += engine.take().lines
sys.stdout.buffer.write(lines + b"\\n")
sys.stdout.flush()
sys.stdin.read()
"""
"""A reader that polls the root and three children to their end, commits nothing, and waits to be killed."""


def _watch(name: str, limit: int | None = None) -> Watch:
    return Watch(name=name, kind="process", value=name, expect=Expect(child_processes=limit))


class Life:
    """One capture and its engine; it ends as a killed daemon does, its pins stay."""

    def __init__(self, pins: str, *watches: Watch, ring_bytes: int = 1 << 20, programs: Path = OBJECT) -> None:
        self.engine = Engine()
        self.capture = CoreCapture(
            self.engine, watches, CaptureTable(ring_bytes=ring_bytes), pins=pins, programs=programs
        )

    def __enter__(self) -> Self:
        """Take over what is pinned."""
        self.capture.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Commit nothing."""
        self.capture.close(keep=True)
        self.engine.close()

    def read(self) -> list[Line]:
        """Everything that is there."""
        self.capture.drain()
        return self.told()

    def told(self) -> list[Line]:
        """What was fed already."""
        return [decode(line) for line in self.engine.take().lines.splitlines()]

    def counters(self) -> WatchSnapshot:
        """Of the first watch."""
        return self.capture.snapshot(None, 0).watches[0]

    def lost(self) -> int:
        """Records for which the ring had no room."""
        return self.capture.snapshot(None, 0).lost["ring_full"]


def _of(told: list[Line], *kinds: type) -> list[Line]:
    return [line for line in told if isinstance(line, kinds)]


def _events(told: list[Line]) -> list[tuple[str, str]]:
    """What happened to whom, in order."""
    kinds = (Root, Fork, Exec, Exit)
    return [(type(line).__name__, line.process_id) for line in told if isinstance(line, kinds)]


def _run(programs: Programs, name: str, children: int) -> None:
    """A root that makes so many children, one after the other, to the end of all."""
    app = programs.start("short_lived", name, str(children))
    app.fact("children")
    app.release()


class Shell:
    """A root that keeps two children and makes more when it is told to."""

    SCRIPT = "sleep 600 & a=$!; sleep 600 & b=$!; echo ready; while read line; do eval $line; echo done; done; kill $b"

    def __init__(self, directory: Path, name: str) -> None:
        path = shutil.copy("/bin/sh", directory / name)
        self._process = subprocess.Popen(
            [path, "-c", self.SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def _answer(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline()

    def do(self, command: str) -> None:
        """Run a shell command; it is over when this returns."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        self._answer()

    def close(self) -> None:
        """End it and its children."""
        with contextlib.suppress(OSError, AssertionError):
            self.do("kill $a 2>/dev/null")
        self._process.communicate()


@pytest.fixture
def shell(tmp_path: Path, name: str) -> Iterator[Shell]:
    """A root called `name`, not started before the test asks for it; gone when the test has ended."""
    running = Shell(tmp_path, name)
    yield running
    running.close()


def test_what_a_killed_reader_did_not_commit_is_read_again_with_its_alarm(
    pins: str, programs: Programs, name: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", READER, name, pins], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as reader:
        assert reader.stdout is not None
        try:
            assert reader.stdout.readline() == b"watching\n"
            _run(programs, name, 3)
            first = [decode(line) for line in iter(reader.stdout.readline, b"\n")]
        finally:
            reader.send_signal(signal.SIGKILL)
    with Life(pins, _watch(name, 0), ring_bytes=CaptureTable().ring_bytes) as second:
        assert second.capture.origin == "taken over"
        again = second.read()
        counted = second.counters()
    assert len(_events(first)) == 1 + 3 + 3 + 1
    assert _events(again) == _events(first)
    assert [line.process_ids for line in again if isinstance(line, Alarm)] == [
        line.process_ids for line in first if isinstance(line, Alarm)
    ]
    assert len(_of(first, Alarm)) == len(_of(first, Clear)) == 3
    assert (counted.spawned, counted.exits, counted.root_starts, counted.root_exits) == (3, 3, 1, 1)


def test_what_was_committed_is_not_read_again(pins: str, programs: Programs, name: str) -> None:
    with Life(pins, _watch(name, 0)) as first:
        _run(programs, name, 3)
        assert len(_events(first.read())) == 8
        first.capture.commit()
        _run(programs, name, 2)
        late = first.read()
        assert len(_events(late)) == 6
    with Life(pins, _watch(name, 0)) as second:
        again = second.read()
        assert _events(again) == _events(late)
        assert len(_of(again, Alarm)) == 2
        assert second.counters().spawned == 5
        second.capture.commit()
    with Life(pins, _watch(name, 0)) as third:
        assert third.read() == []
        assert third.counters().spawned == 5


def test_reading_goes_on_without_commit_and_each_successor_reads_all_of_it(
    pins: str, programs: Programs, name: str
) -> None:
    read: list[Line] = []
    with Life(pins, _watch(name)) as first:
        for _ in range(5):
            _run(programs, name, 4)
            read += first.read()
        assert len(_events(read)) == 5 * 10
    for _ in range(3):
        with Life(pins, _watch(name)) as successor:
            assert _events(successor.read()) == _events(read)
            assert successor.counters().spawned == 20
            assert successor.lost() == 0


def test_limit_is_judged_again_with_those_who_were_alive_then(pins: str, shell: Shell, name: str) -> None:
    """Two children stay, told and committed long ago; a third that came and went breaks a limit of two."""
    with Life(pins, _watch(name, 2)) as first:
        assert _of(first.read(), Alarm) == []
        first.capture.commit()
        shell.do("/bin/true")
        alarms = _of(first.read(), Alarm, Clear)
        assert [type(line) for line in alarms] == ALARM_AND_CLEAR
    with Life(pins, _watch(name, 2)) as second:
        again = _of(second.read(), Alarm, Clear)
        assert [type(line) for line in again] == ALARM_AND_CLEAR
        for line, before in zip(again, alarms, strict=True):
            assert isinstance(line, Alarm | Clear)
            assert isinstance(before, Alarm | Clear)
            assert (line.value, line.process_ids) == (before.value, before.process_ids)
        assert (second.counters().alive, second.counters().peak) == (2, 3)


def test_limit_that_held_is_not_broken_by_reading_again(pins: str, shell: Shell, name: str) -> None:
    """One of two goes, another comes and stays: never three, though three were alive over the records."""
    with Life(pins, _watch(name, 2)) as first:
        first.read()
        first.capture.commit()
        shell.do("kill $a; wait $a 2>/dev/null")
        shell.do("sleep 600 & a=$!")
        assert _of(first.read(), Alarm, Clear) == []
    with Life(pins, _watch(name, 2)) as second:
        again = second.read()
        assert [kind for kind, _ in _events(again)] == ["Exit", "Fork", "Exec"]
        assert _of(again, Alarm, Clear) == []
        assert second.counters().alive == 2


def test_alarm_that_stood_before_the_records_is_raised_and_cleared(pins: str, shell: Shell, name: str) -> None:
    with Life(pins, _watch(name, 1)) as first:
        assert len(_of(first.read(), Alarm)) == 1
        first.capture.commit()
        shell.do("kill $a; wait $a 2>/dev/null")
    with Life(pins, _watch(name, 1)) as second:
        assert [type(line) for line in _of(second.read(), Alarm, Clear)] == ALARM_AND_CLEAR


def test_next_version_judges_what_the_last_one_did_not_read(pins: str, shell: Shell, name: str, tmp_path: Path) -> None:
    with Life(pins, _watch(name, 2)) as first:
        first.read()
        first.capture.commit()
        shell.do("/bin/true")
        first.read()  # and is killed
    programs = tmp_path / "next.o"
    programs.write_bytes(OBJECT.read_bytes() + b"\0")
    with Life(pins, _watch(name, 2), programs=programs) as second:
        assert second.capture.origin == "swapped"
        again = second.read()
        assert [type(line) for line in _of(again, Alarm, Clear)] == ALARM_AND_CLEAR
        assert [kind for kind, _ in _events(again)] == ["Fork", "Exec", "Exit"]
        counted = second.counters()
        assert (counted.alive, counted.adopted, counted.spawned, counted.exits) == (2, 2, 1, 1)


def test_ring_that_is_full_of_uncommitted_records_counts_its_losses_and_goes_on(
    pins: str, programs: Programs, name: str
) -> None:
    with Life(pins, _watch(name), ring_bytes=PAGE_BYTES) as first:
        _run(programs, name, 200)
        told = first.read()
        kept = len(_events(told))
        lost = sum(line.count for line in told if isinstance(line, Lost))
        assert kept + lost == 402
        assert 0 < kept * 60 < PAGE_BYTES
        assert lost == first.lost()
        _run(programs, name, 10)
        assert _events(first.read()) == [], "no room was given back"
        assert first.lost() == lost + 22
        first.capture.commit()
        _run(programs, name, 10)
        assert len(_events(first.read())) == 22
        assert first.lost() == lost + 22
        assert first.counters().spawned == 220
    with Life(pins, _watch(name), ring_bytes=PAGE_BYTES) as second:
        assert len(_events(second.read())) == 22
        counted = second.counters()
        assert (counted.spawned, counted.exits, counted.root_starts, counted.roots) == (220, 220, 3, 0)


def test_loss_that_nobody_committed_is_told_again(pins: str, programs: Programs, name: str) -> None:
    with Life(pins, _watch(name), ring_bytes=PAGE_BYTES) as first:
        _run(programs, name, 200)
        lost = [line.count for line in first.read() if isinstance(line, Lost)]
        assert sum(lost) == first.lost() > 0
    with Life(pins, _watch(name), ring_bytes=PAGE_BYTES) as second:
        assert sum(line.count for line in second.read() if isinstance(line, Lost)) == sum(lost)
        second.capture.commit()
    with Life(pins, _watch(name), ring_bytes=PAGE_BYTES) as third:
        assert _of(third.read(), Lost) == []
        assert third.lost() == sum(lost)


def test_reader_that_sleeps_on_a_full_ring_still_learns_of_losses(pins: str, programs: Programs, name: str) -> None:
    """A full ring has no room for a hook's knock."""
    with Life(pins, _watch(name), ring_bytes=PAGE_BYTES) as life:
        _run(programs, name, 200)
        life.read()
        told: list[Line] = []

        def follow() -> None:
            while life.capture.poll():
                told.extend(life.told())

        thread = threading.Thread(target=follow)
        thread.start()
        try:
            _run(programs, name, 10)
            eventually(lambda: sum(line.count for line in told if isinstance(line, Lost)) == 22, "the losses")
        finally:
            life.capture.stop()
            thread.join()


def test_nothing_is_held_back_where_nothing_is_pinned(programs: Programs, name: str) -> None:
    with Life("", _watch(name), ring_bytes=PAGE_BYTES) as life:
        told = 0
        for _ in range(20):
            _run(programs, name, 10)
            told += len(_events(life.read()))
        assert (told, life.lost()) == (20 * 22, 0)


def test_verdict_on_a_command_line_is_counted_once_however_often_it_is_given(pins: str, tmp_path: Path) -> None:
    script = tmp_path / "wanted.sh"
    script.write_text("/bin/true\n/bin/sh -c '/bin/true; /bin/true'\n")
    watch = Watch(name="app", kind="cmdline", value=r"^/bin/sh \S*wanted\.sh$")

    def cells(life: Life) -> tuple[int, ...]:
        row = life.counters()
        return row.root_starts, row.roots, row.spawned, row.execs, row.exits, row.alive

    with Life(pins, watch) as first:
        for _ in range(5):
            subprocess.run(["/bin/sh", script], check=True)
        told = first.read()
        assert [type(line) for line in told].count(Root) == 5
        counted = cells(first)
        assert counted[:2] == (5, 0)
        assert counted[2] == counted[4] > 0
    for _ in range(2):
        with Life(pins, watch) as successor:
            assert _events(successor.read()) == _events(told)
            assert cells(successor) == counted


def test_verdict_of_an_earlier_reader_holds_for_what_came_after_it(pins: str, tmp_path: Path) -> None:
    """The script's exec is read and committed; its children's records only by the next reader."""
    script = tmp_path / "wanted.sh"
    script.write_text("echo ready\nread line\n/bin/true\n/bin/true\n")
    watch = Watch(name="app", kind="cmdline", value=r"wanted\.sh$")
    with subprocess.Popen(["/bin/sh", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.communicate("\n")  # not watched: it makes sure that the script ends
    assert process.returncode == 0
    with (
        Life(pins, watch) as first,
        subprocess.Popen(["/bin/sh", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline()
        assert [type(line) for line in first.read()] == [Root]
        first.capture.commit()
        process.communicate("\n")
    with Life(pins, watch) as second:
        told = second.read()
        assert [type(line) for line in told].count(Fork) == 2
        assert _of(told, Root) == []
        row = second.counters()
        assert (row.root_starts, row.roots, row.spawned, row.execs, row.exits) == (1, 0, 2, 2, 2)


def test_slot_is_given_to_no_other_watch_while_records_still_mean_the_old_one(
    pins: str, programs: Programs, name: str
) -> None:
    goes, comes = _watch(f"{name}a"), _watch(f"{name}b", 0)
    with Life(pins, goes) as first:
        _run(programs, goes.name, 3)
        first.capture.apply((comes,))  # reads them, and is killed
    with Life(pins, comes) as second:
        assert [line for line in second.read() if getattr(line, "watch", "") == comes.name] == []
        second.capture.commit()
        _run(programs, comes.name, 2)
        told = second.read()
        assert len(_events(told)) == 6
        assert second.counters().spawned == 2


def test_slots_of_records_that_are_not_committed_are_spared_by_the_next_reader_too(
    pins: str, programs: Programs, name: str
) -> None:
    goes, comes = _watch(f"{name}a"), _watch(f"{name}b", 0)
    with Life(pins, goes) as first:
        _run(programs, goes.name, 3)
        first.read()
    with Life(pins, comes) as second:
        assert second.read() == []
    with Life(pins, comes) as third:
        assert third.read() == []
        assert third.counters().spawned == 0

"""Another version's programs take over while the application forks: nothing is missed, nothing counted twice."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from monitor.capture.core import CoreCapture
from monitor.engine import Engine
from monitor.engine.lines import Exit, Fork, Root, decode
from monitor.errors import CaptureUnavailable
from monitor.expect import Expect
from monitor.schema import Capture as CaptureTable
from monitor.watch import Watch
from tests.compiling import compiled
from tests.kernel.follow import poll

if TYPE_CHECKING:
    from collections.abc import Iterator

    from monitor.detect.snapshot import Snapshot

OBJECT = Path(__file__).parents[2] / "monitor" / "capture" / "kinwatch.bpf.o"
NAME = "kwswapped"


@contextlib.contextmanager
def _running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The forking application, past its first three children."""
    program = compiled(Path(__file__).with_name("forks_until_told.c"), tmp_path / NAME)
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            with contextlib.suppress(OSError):
                process.kill()


def _capture(engine: Engine, pins: str, programs: Path, watches: tuple[Watch, ...]) -> CoreCapture:
    return CoreCapture(engine, watches, CaptureTable(ring_bytes=1 << 24), pins=pins, programs=programs)


def test_the_next_version_takes_over_without_missing_or_doubling_a_child(pins: str, tmp_path: Path) -> None:
    """Four versions in a row; every fork and exit is told once, and the counters equal the application's own count."""
    watches = (Watch(name=NAME, kind="process", value=NAME, expect=Expect()),)
    lines: list[bytes] = []
    children = -1
    snapshots: list[Snapshot] = []
    with Engine() as engine, contextlib.ExitStack() as stack:
        capture = _capture(engine, pins, OBJECT, watches)
        capture.start()
        application = stack.enter_context(_running(tmp_path))
        assert application.stdin is not None
        assert application.stdout is not None
        capture.close(keep=True)  # what it did not drain is for the next one
        for version in (1, 2, 3):
            programs = tmp_path / f"version{version}.o"
            programs.write_bytes(OBJECT.read_bytes() + b"\0" * version)
            with Engine() as next_engine:
                capture = _capture(next_engine, pins, programs, watches)
                assert capture.origin == "swapped"
                capture.start()
                reader = threading.Thread(target=poll, args=(capture, next_engine, lines))
                reader.start()
                if version == 3:
                    application.stdin.write("\n")
                    application.stdin.close()
                    children = int(application.stdout.read())
                    application.wait()
                capture.stop()
                reader.join()
                capture.drain()
                lines += next_engine.take().lines.splitlines()
                capture.commit()
                snapshots.append(capture.snapshot(None, 0))
                capture.close(keep=True)

    told = [decode(line) for line in lines]
    row = snapshots[-1].watches[0]
    assert snapshots[-1].lost == dict.fromkeys(snapshots[-1].lost, 0)
    assert (row.spawned, row.exits, row.adopted, row.alive) == (children, children, 0, 0)
    assert (row.root_starts, row.root_exits, row.roots) == (1, 1, 0)
    forks = [line.process_id for line in told if isinstance(line, Fork)]
    exits = [line.process_id for line in told if isinstance(line, Exit)]
    assert len(set(forks)) == len(forks) == children
    assert len(set(exits)) == len(exits) == children + 1
    assert [type(line) for line in told if not isinstance(line, Fork | Exit)] == [Root]


def test_a_version_that_cannot_load_leaves_the_live_one_alone(pins: str, tmp_path: Path) -> None:
    """The old programs go on, and the next good version takes over what they counted."""
    watches = (Watch(name=NAME, kind="process", value=NAME, expect=Expect()),)
    broken = tmp_path / "broken.o"
    broken.write_bytes(OBJECT.read_bytes()[:5000])
    with Engine() as engine, contextlib.ExitStack() as stack:
        capture = _capture(engine, pins, OBJECT, watches)
        capture.start()
        generation = capture.generation
        capture.close(keep=True)
        with Engine() as other, pytest.raises(CaptureUnavailable, match="cannot open"):
            _capture(other, pins, broken, watches)
        application = stack.enter_context(_running(tmp_path))
        application.communicate("\n")
        with Engine() as last:
            capture = _capture(last, pins, OBJECT, watches)
            try:
                assert (capture.origin, capture.generation) == ("taken over", generation)
                capture.start()
                assert capture.snapshot(None, 0).watches[0].root_starts == 1
            finally:
                capture.close(keep=False)


def test_a_crash_between_the_two_renames_leaves_a_whole_set(pins: str) -> None:
    """Pins are made aside and renamed into place; a loader that died in the middle left the new set complete."""
    watches = (Watch(name=NAME, kind="process", value=NAME, expect=Expect()),)
    with Engine() as engine:
        capture = _capture(engine, pins, OBJECT, watches)
        capture.start()
        generation = capture.generation
        capture.close(keep=True)
    Path(pins).rename(f"{pins}_new")
    Path(f"{pins}_old").mkdir()
    with Engine() as engine:
        capture = _capture(engine, pins, OBJECT, watches)
        try:
            assert (capture.origin, capture.generation) == ("taken over", generation)
        finally:
            capture.close(keep=False)
    assert not any(Path(f"{pins}{suffix}").exists() for suffix in ("", "_new", "_old"))

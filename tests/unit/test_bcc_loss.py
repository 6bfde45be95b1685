"""What the bcc capture makes of a loss while processes go on: its kernel is the test, its processes are real."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from monitor.capture import bcc, bccprobe, bccsource
from monitor.capture.bccprogram import Row
from monitor.capture.procfs import read_stat
from monitor.engine import Engine, records
from monitor.engine._native import lib
from monitor.engine.records import ProcessId
from monitor.schema import Capture as Settings
from monitor.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = bccsource.Source(headers="", flags=(), offsets=True, told="the test")
NOBODY = 4_000_000
"""A pid above what pid_max allows by default: /proc has no such process."""


class _Kernel:
    """In place of the program: whom it follows, and what comes after the table was read."""

    def __init__(self, *_: object, **__: object) -> None:
        self.rows: dict[ProcessId, Row] = {}
        self.dismissed: list[ProcessId] = []
        self.meanwhile: list[tuple[int, bytes]] = []
        self._came: list[tuple[int, bytes]] = []
        self.lost = 0

    def followed(self) -> dict[ProcessId, Row]:
        self._came, self.meanwhile = self.meanwhile, []
        return dict(self.rows)

    def receive(self) -> list[tuple[int, bytes]]:
        came, self._came = self._came, []
        return came

    def losses(self) -> tuple[int, int]:
        return self.lost, 0

    def follow(self, process: ProcessId) -> bool:
        self.rows[process] = Row(process.start_ns, 0, 0, 0)
        return True

    def dismiss(self, process: ProcessId, _: int) -> None:
        self.dismissed.append(process)

    def attach(self, wake: int) -> None:
        """Nothing to attach."""

    def everybody(self, *, on: bool) -> None:
        """Nobody is told but by the test."""

    def want(self, wanted: set[tuple[bytes, int, int, int]], *, anything: bool) -> None:
        """Nobody is told but by the test."""

    def close(self) -> None:
        """Nothing to take away."""


@pytest.fixture
def family() -> Iterator[tuple[ProcessId, ProcessId]]:
    """A shell and its child."""
    script = "sleep 600 & echo $!; read _; kill $!"
    with subprocess.Popen(["/bin/sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        child = int(shell.stdout.readline())
        yield _process(shell.pid), _process(child)
        assert shell.stdin is not None
        shell.stdin.close()


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(64) as opened:
        yield opened


def _process(pid: int) -> ProcessId:
    stat = read_stat(pid)
    assert stat is not None
    return stat.process


def _watching(engine: Engine, root: ProcessId, monkeypatch: pytest.MonkeyPatch) -> tuple[bcc.BccCapture, _Kernel]:
    """A capture of one root."""
    kernel = _Kernel()
    monkeypatch.setattr(bcc, "Program", lambda *_, **__: kernel)
    monkeypatch.setattr(bccprobe, "try_out", lambda _: [])
    watch = Watch(name="one", kind="pid", value=str(root.pid))
    return bcc.BccCapture(engine, [watch], Settings(max_processes=64), source=SOURCE), kernel


def test_who_is_made_while_the_table_is_read_has_not_ended(
    engine: Engine, family: tuple[ProcessId, ProcessId], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, child = family
    capture, kernel = _watching(engine, root, monkeypatch)
    capture.start()
    before = engine.counters(0)
    kernel.lost = 1
    made = ProcessId(NOBODY, child.start_ns)
    fork = records.fork_record(time_ns=1, process=made, parent=root, watches=0, comm=b"sh", uid=0)
    kernel.meanwhile = [(1, fork)]
    capture.drain()
    after = engine.counters(0)
    assert (after.alive, after.spawned, after.exits) == (before.alive + 1, before.spawned + 1, before.exits)
    capture.close(keep=False)


def test_who_is_found_in_the_table_is_not_dismissed_by_a_record_that_came_meanwhile(
    engine: Engine, family: tuple[ProcessId, ProcessId], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = family
    capture, kernel = _watching(engine, root, monkeypatch)
    capture.start()
    made = subprocess.Popen(["/bin/sleep", "600"])  # its maker's record was lost, as the table has it
    try:
        lost = _process(made.pid)
        kernel.rows[lost] = Row(lost.start_ns, root.start_ns, root.pid, 1)
        image = records.image_record(
            kind=lib.KW_EXEC, time_ns=1, process=lost, watches=0, comm=b"sleep", cause=1, exe=b"/bin/sleep"
        )
        kernel.meanwhile = [(1, image)]
        kernel.lost = 1
        before = engine.counters(0)
        capture.drain()
        assert engine.counters(0).alive == before.alive + 1
        assert kernel.dismissed == []
    finally:
        made.kill()
        made.wait()
        capture.close(keep=False)

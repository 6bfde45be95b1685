"""A core capture in this process that enforces: unpinned, polled by a thread, its counters and lines at hand."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from monitor.capture.core import CoreCapture
from monitor.engine import Engine
from monitor.engine._native import ffi, lib
from monitor.engine.lines import decode
from monitor.schema import Capture as CaptureTable
from monitor.schema import Enforcement
from monitor.watch import Watch
from tests.kernel.follow import poll

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from monitor.engine._native import CData
    from monitor.engine.lines import Line
    from monitor.expect import Expect

MANY = Enforcement(max_kills_per_minute=1_000_000)
"""A breaker that does not trip."""
DEFAULTS = CaptureTable()
SIGNALS_CHILDREN = " bpf_send_signal_task\n" in Path("/proc/kallsyms").read_text()
"""Asked of the kernel and not of the program: what that overlooks must not skip its own tests."""
_LSM = Path("/sys/kernel/security/lsm")
REFUSES_FORKS = not SIGNALS_CHILDREN and _LSM.exists() and "bpf" in _LSM.read_text().strip().split(",")
"""A kernel with the BPF LSM; one that can kill a forked child refuses none."""
leaves_forks = pytest.mark.skipif(REFUSES_FORKS, reason="this kernel refuses a fork that must not be: test_deny.py")
"""A test of children that are made and that the kernel cannot kill."""
forks_die = pytest.mark.skipif(
    not SIGNALS_CHILDREN,
    reason="this kernel cannot kill a forked child before it runs: it has no bpf_send_signal_task (6.13)",
)
"""A test in which a child dies of its fork. What is true without is in test_enforce_swap.py."""


def killing(name: str, expect: Expect) -> Watch:
    """A watch by process name whose breaches are deadly."""
    return Watch(name=name, kind="process", value=name, expect=expect, enforce="kill")


class Enforcing:
    """A running capture."""

    def __init__(self, capture: CoreCapture, engine: Engine) -> None:
        self.capture, self._engine = capture, engine
        self._lines: list[bytes] = []

    def row(self, name: str) -> CData:
        """The kernel's counters of a watch."""
        cells = ffi.new("struct kw_counters[]", lib.KW_SLOTS)
        assert lib.kw_loader_snapshot(self.capture._handle, -1, cells) == 0
        slot = next(held.slot for held in self.capture.watches if held.watch.name == name)
        # A copy that owns its memory: a row of the array would outlive it.
        row: CData = ffi.new("struct kw_counters *", cells[slot])[0]
        return row

    def lost(self) -> dict[str, int]:
        """What was lost so far, by stage."""
        return self.capture.snapshot(None, 0).lost

    def lines(self) -> list[Line]:
        """All lines so far. Not while the thread polls."""
        return [decode(line) for line in self._lines]

    @contextlib.contextmanager
    def polled(self) -> Iterator[None]:
        """With a thread that drains the ring."""
        thread = threading.Thread(target=poll, args=(self.capture, self._engine, self._lines))
        thread.start()
        try:
            yield
        finally:
            self.capture.stop()
            thread.join()
            self.capture.drain()
            self._lines += self._engine.take().lines.splitlines()


@contextlib.contextmanager
def opened(
    watches: Sequence[Watch],
    settings: Enforcement = MANY,
    table: CaptureTable = DEFAULTS,
    programs: Path | None = None,
    *,
    paired: bool = False,
) -> Iterator[Enforcing]:
    """The capture, begun; unloaded when the block ends."""
    with Engine() as engine:
        capture = CoreCapture(engine, watches, table, programs=programs, paired=paired, enforcing=settings)
        try:
            capture.start()
            yield Enforcing(capture, engine)
        finally:
            capture.close(keep=False)

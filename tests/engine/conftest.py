"""What the engine's tests share: a small world of processes that speaks in records and knows the true counts.

Owns the model (`World`), which is the truth the engine is compared with. It follows the rules of kinship by their
definition, with a list of live processes, and knows nothing of how the engine counts.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from monitor.engine import Engine, lines
from monitor.engine._native import lib
from monitor.engine.records import (
    Credentials,
    Lineage,
    ProcessId,
    exit_record,
    fork_record,
    image_record,
    sync_record,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from monitor.engine.lines import Line

START_NS = 1_000_000_000_000
STEP_NS = 25_000_000


@dataclass
class Process:
    """A process of the world. `roots` maps a slot to the root it descends from there and the depth below it."""

    id: ProcessId
    parent: Process | None
    comm: bytes
    exe: bytes
    kin: dict[int, tuple[ProcessId, int]]
    outermost: Lineage | None

    @property
    def watches(self) -> int:
        """Mask of the slots it is kin of."""
        return sum(1 << slot for slot in self.kin)

    @property
    def roots(self) -> int:
        """Mask of the slots it is a root of."""
        return sum(1 << slot for slot, (root, _) in self.kin.items() if root == self.id)

    def descends(self, slot: int) -> bool:
        """Whether it is kin of slot and no root of it."""
        return slot in self.kin and self.kin[slot][0] != self.id


@dataclass
class Truth:
    """What the counters of one slot must say."""

    spawned: int = 0
    adopted: int = 0
    execs: int = 0
    exits: int = 0
    root_starts: int = 0
    root_exits: int = 0
    peak: int = 0


@dataclass
class World:
    """Processes that fork, execute and end. Every method returns the record that a complete capture would write."""

    now_ns: int = START_NS
    next_pid: int = 1000
    live: list[Process] = field(default_factory=list)
    truth: defaultdict[int, Truth] = field(default_factory=lambda: defaultdict(Truth))

    def tick(self) -> int:
        """Let time pass and return it."""
        self.now_ns += STEP_NS
        return self.now_ns

    def alive(self, slot: int) -> int:
        """Descendants alive."""
        return sum(process.descends(slot) for process in self.live)

    def roots(self, slot: int) -> int:
        """Roots alive."""
        return sum(slot in process.kin and not process.descends(slot) for process in self.live)

    def _new_id(self, pid: int | None) -> ProcessId:
        if pid is None:
            pid = self.next_pid
            self.next_pid += 1
        return ProcessId(pid, self.tick())

    def _saw_alive(self, process: Process) -> None:
        for slot in process.kin:
            truth = self.truth[slot]
            truth.peak = max(truth.peak, self.alive(slot))

    def _image(self, process: Process, kind: int, fresh: int, cause: int) -> bytes:
        return image_record(
            kind=kind,
            time_ns=self.tick(),
            process=process.id,
            watches=process.watches,
            roots=process.roots,
            fresh=fresh,
            cause=cause,
            comm=process.comm,
            parent=process.parent.id if process.parent else None,
            lineage=process.outermost,
            ppid=1,
            credentials=Credentials(1000, 100),
            exe=process.exe,
            argv=[process.exe, b"-x"],
            cwd=b"/",
        )

    def start_root(self, *slots: int, comm: bytes = b"myapp", pid: int | None = None) -> tuple[Process, bytes]:
        """A stranger executes what the watches of `slots` match."""
        process = Process(self._new_id(pid), None, comm, b"/opt/" + comm, {}, None)
        self.live.append(process)
        return process, self.become_root(process, *slots)

    def become_root(self, process: Process, *slots: int) -> bytes:
        """It executes an image that matches, where it is not kin already."""
        for slot in slots:
            process.kin[slot] = (process.id, 0)
            self.truth[slot].root_starts += 1
        process.outermost = process.outermost or Lineage(process.id, 0)
        for slot in process.kin:
            self.truth[slot].execs += process.descends(slot)
        return self._image(process, lib.KW_EXEC, sum(1 << slot for slot in slots), lib.KW_CAUSE_EXEC)

    def fork(self, parent: Process, pid: int | None = None) -> tuple[Process, bytes]:
        """Kin makes a child."""
        kin = {slot: (root, depth + 1) for slot, (root, depth) in parent.kin.items()}
        assert parent.outermost is not None
        outermost = Lineage(parent.outermost.root, parent.outermost.depth + 1)
        child = Process(self._new_id(pid), parent, parent.comm, parent.exe, kin, outermost)
        self.live.append(child)
        for slot in kin:
            self.truth[slot].spawned += 1
        self._saw_alive(child)
        record = fork_record(
            time_ns=self.now_ns,
            process=child.id,
            parent=parent.id,
            watches=child.watches,
            lineage=outermost,
            comm=child.comm,
            uid=1000,
        )
        return child, record

    def adopt(self, parent: Process) -> tuple[Process, bytes]:
        """A child of kin, made before anybody looked, is found."""
        child, _ = self.fork(parent)
        for slot in child.kin:
            self.truth[slot].spawned -= 1
            self.truth[slot].adopted += 1
        return child, self._image(child, lib.KW_ADOPT, child.watches, lib.KW_CAUSE_RUNNING)

    def execute(self, process: Process, comm: bytes = b"cat") -> bytes:
        """It runs another image, which matches nothing."""
        process.comm = comm
        process.exe = b"/bin/" + comm
        return self.become_root(process)

    def end(self, process: Process, status: int = 0) -> bytes:
        """Its last thread ends."""
        self.live.remove(process)
        for slot in process.kin:
            truth = self.truth[slot]
            if process.descends(slot):
                truth.exits += 1
            else:
                truth.root_exits += 1
        return exit_record(
            time_ns=self.tick(),
            process=process.id,
            watches=process.watches,
            roots=process.roots,
            comm=process.comm,
            lineage=process.outermost,
            status=status,
            uid=1000,
        )

    def rows(self) -> bytes:
        """The live kin as a sync tells it, newest first: children before their parents, the hard case."""
        rows = [sync_record(phase=0, time_ns=self.tick())]
        rows += [
            sync_record(
                phase=1,
                time_ns=self.now_ns,
                process=process.id,
                watches=process.watches,
                roots=process.roots,
                parent=process.parent.id if process.parent else None,
                lineage=process.outermost,
                comm=process.comm,
                uid=1000,
            )
            for process in reversed(self.live)
            if process.kin
        ]
        rows.append(sync_record(phase=2, time_ns=self.now_ns))
        return b"".join(rows)

    def check(self, engine: Engine, slot: int) -> None:
        """The engine's counters of slot are the truth."""
        counters = engine.counters(slot)
        truth = self.truth[slot]
        assert (counters.alive, counters.roots) == (self.alive(slot), self.roots(slot))
        for name in ("spawned", "adopted", "execs", "exits", "root_starts", "root_exits", "peak"):
            assert getattr(counters, name) == getattr(truth, name), name


def _told(engine: Engine) -> list[Line]:
    """Take the lines made since the last time, each decoded strictly."""
    batch = engine.take()
    told = [lines.decode(line) for line in batch.lines.splitlines()]
    assert len(told) == batch.lines_count
    assert batch.alarms == sum(isinstance(line, lines.Alarm) for line in told)
    assert batch.clears == sum(isinstance(line, lines.Clear) for line in told)
    return told


class Tools:
    """The world and the reading of lines, for test files that cannot import this one."""

    World = World
    told = staticmethod(_told)


@pytest.fixture(scope="session")
def tools() -> type[Tools]:
    """World and told()."""
    return Tools


@pytest.fixture
def world() -> World:
    """An empty world."""
    return World()


@pytest.fixture
def engine() -> Iterator[Engine]:
    """An engine with watches one (slot 0), two (slot 1) and far (the last slot), without limits."""
    with Engine(4096) as made:
        for slot, name in ((0, "one"), (1, "two"), (lib.KW_SLOTS - 1, "far")):
            made.watch(slot, name, None)
        yield made

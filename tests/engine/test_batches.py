"""What is asked of the engine: batches, bounded and with nothing dropped in silence, executables, the tree."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

import pytest

from monitor.engine import Engine, lines
from monitor.engine._native import lib
from monitor.engine.records import ProcessId, fork_record, image_record
from monitor.errors import EngineRefused

if TYPE_CHECKING:
    from tests.engine.conftest import Tools, World

BATCH_BYTES = 64 << 20


def test_a_take_empties(engine: Engine, world: World) -> None:
    _, record = world.start_root(0)
    engine.ingest(record)
    assert engine.take().lines_count == 1
    assert engine.take().lines == b""


def test_accepted_records_are_kept_while_recording(engine: Engine, world: World) -> None:
    root, record = world.start_root(0)
    engine.ingest(record)
    assert engine.take().records == b""
    engine.record(on=True)
    fork = world.fork(root)[1]
    foreign = bytes(fork[:4]) + b"\xff" * (len(fork) - 4)
    engine.ingest(fork + foreign + fork)
    assert engine.take().records == fork + fork
    engine.record(on=False)
    engine.ingest(fork)
    assert engine.take().records == b""


def test_a_recording_replayed_makes_the_same_lines_and_counts(engine: Engine, world: World) -> None:
    engine.record(on=True)
    root, record = world.start_root(0)
    engine.ingest(record)
    for _ in range(5):
        child, fork = world.fork(root)
        engine.ingest(fork + world.execute(child) + world.end(child))
    batch = engine.take()
    with Engine(64) as again:
        again.watch(0, "one", None)
        again.ingest(batch.records)
        assert again.take().lines == batch.lines
        assert again.counters(0) == engine.counters(0)


def test_lines_nobody_takes_are_dropped_counted_and_told(engine: Engine, world: World) -> None:
    engine.watch(0, "one", 0)
    root, record = world.start_root(0)
    engine.ingest(record)
    exec_record = image_record(
        kind=lib.KW_EXEC,
        time_ns=world.tick(),
        process=root.id,
        watches=1,
        roots=1,
        comm=b"myapp",
        argv=[b"\x01" * (lib.KW_ARGV_BYTES - 1)],  # six bytes each in the line
    )
    batch = exec_record * 100
    made = 1
    while not engine.losses()["sink_full"]:
        made += engine.ingest(batch)
        assert made < 10_000
    made += 1
    engine.ingest(world.fork(root)[1])
    dropped = engine.losses()["sink_full"]
    taken = engine.take()
    assert len(taken.lines) <= BATCH_BYTES + (1 << 20)
    told = taken.lines.splitlines()
    assert taken.alarms == 1
    assert json.loads(told[-1])["event"] == "alarm"  # there is always room for it
    assert len(told) - taken.alarms + dropped == made
    (lost,) = (lines.decode(line) for line in engine.take().lines.splitlines())
    assert isinstance(lost, lines.Lost)
    assert (lost.stage, lost.count) == ("sink_full", dropped)


def test_executables_of_descendants_since_a_mark_oldest_first(engine: Engine, world: World) -> None:
    root, record = world.start_root(0)
    child, fork = world.fork(root)
    engine.ingest(
        record + fork + world.execute(root, b"root-only") + world.execute(child, b"a") + world.execute(child, b"b")
    )
    mark = engine.mark()
    assert engine.exes(0, 0) == (("/bin/a", "/bin/b"), 0)
    assert engine.exes(0, mark) == ((), 0)
    engine.ingest(world.execute(child, b"c") + world.execute(child, b"a"))
    assert engine.exes(0, mark) == (("/bin/c", "/bin/a"), 0)
    assert engine.exes(0, 0) == (("/bin/b", "/bin/c", "/bin/a"), 0)
    assert engine.exes(1, 0) == ((), 0)


@pytest.mark.parametrize("distinct", [256, 257, 300, 1279])  # with `before`: all that is exact
def test_executables_beyond_the_bound_are_counted_as_missed(engine: Engine, world: World, distinct: int) -> None:
    root, record = world.start_root(0)
    child, fork = world.fork(root)
    engine.ingest(record + fork)
    engine.ingest(world.execute(child, b"before"))
    mark = engine.mark()
    for turn in range(2):
        for number in range(distinct):
            engine.ingest(world.execute(child, b"x%d" % number))
        exes, missed = engine.exes(0, mark)
        assert len(exes) == 256
        assert missed == distinct - 256, turn
        assert exes == tuple(f"/bin/x{number}" for number in range(distinct - 256, distinct))


def test_very_many_executables_are_missed_in_no_smaller_number(engine: Engine, world: World) -> None:
    root, record = world.start_root(0)
    child, fork = world.fork(root)
    engine.ingest(record + fork)
    for number in range(3000):
        engine.ingest(world.execute(child, b"x%d" % number))
    assert engine.exes(0, 0)[1] == 3000 - 256
    mark = engine.mark()
    for number in range(3000):
        engine.ingest(world.execute(child, b"x%d" % number))
    assert engine.exes(0, mark)[1] >= 3000 - 256
    mark = engine.mark()
    engine.ingest(world.execute(child, b"x0"))
    assert engine.exes(0, mark) == (("/bin/x0",), 0)


def test_more_paths_than_memory_is_given_are_missed_not_forgotten(engine: Engine, world: World) -> None:
    root, record = world.start_root(0)
    engine.ingest(record)
    child, fork = world.fork(root)
    engine.ingest(fork)
    for number in range(4000):
        process, fork = world.fork(root)
        process.comm = b"x"
        process.exe = b"/" + b"%d" % number * 900
        engine.ingest(fork + world.become_root(process))
    exes, missed = engine.exes(0, 0)
    assert len(exes) + missed == 4000
    world.check(engine, 0)
    assert child in world.live


def _tree(engine: Engine) -> list[dict[str, object]]:
    return [json.loads(line) for line in engine.tree().splitlines()]


def test_the_tree_is_the_living_parents_first(engine: Engine, world: World) -> None:
    assert engine.tree() == b""
    top, record = world.start_root(0)
    engine.ingest(record)
    middle, fork = world.fork(top)
    engine.ingest(fork + world.become_root(middle, 1))
    low, fork = world.fork(middle)
    engine.ingest(fork + world.execute(low))
    gone, fork = world.fork(middle)
    engine.ingest(fork + world.end(gone))
    assert _tree(engine) == [
        {
            "pid": top.id.pid,
            "process_id": str(top.id),
            "comm": "myapp",
            "exe": "/opt/myapp",
            "uid": 1000,
            "watches": [{"watch": "one", "root": True, "depth": 0, "root_process_id": str(top.id)}],
        },
        {
            "pid": middle.id.pid,
            "process_id": str(middle.id),
            "parent_process_id": str(top.id),
            "comm": "myapp",
            "exe": "/opt/myapp",
            "uid": 1000,
            "watches": [
                {"watch": "one", "depth": 1, "root_process_id": str(top.id)},
                {"watch": "two", "root": True, "depth": 0, "root_process_id": str(middle.id)},
            ],
        },
        {
            "pid": low.id.pid,
            "process_id": str(low.id),
            "parent_process_id": str(middle.id),
            "comm": "cat",
            "exe": "/bin/cat",
            "uid": 1000,
            "watches": [
                {"watch": "one", "depth": 2, "root_process_id": str(top.id)},
                {"watch": "two", "depth": 1, "root_process_id": str(middle.id)},
            ],
        },
    ]


def test_in_the_tree_a_parent_of_the_same_tick_comes_first_whatever_its_pid(engine: Engine) -> None:
    start_ns = 50 * lib.KW_TICK_NS
    pids = [9, 3, 7, 1, 5, 2, 8]
    for parent, child in itertools.pairwise(pids):
        engine.ingest(
            fork_record(
                time_ns=start_ns,
                process=ProcessId(child, start_ns),
                parent=ProcessId(parent, start_ns),
                watches=1,
                comm=b"x",
            )
        )
    assert [row["pid"] for row in _tree(engine)] == pids[1:]


def test_a_large_tree_is_whole(world: World, tools: type[Tools]) -> None:
    with Engine(32768) as engine:
        engine.watch(0, "one", None)
        root, record = world.start_root(0)
        engine.ingest(record)
        for _ in range(5000):
            engine.ingest(world.fork(root)[1])
        assert [row["pid"] for row in _tree(engine)] == [process.id.pid for process in world.live]
        tools.told(engine)


def test_a_closed_engine_refuses() -> None:
    engine = Engine(4)
    engine.close()
    engine.close()
    with pytest.raises(EngineRefused, match="closed"):
        engine.take()


@pytest.mark.parametrize("size", [0, -1, 1 << 23])
def test_an_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(EngineRefused):
        Engine(size)

"""Counts are those of the processes, however records repeat, miss or overtake each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.engine import Engine, lines
from monitor.engine._native import lib
from monitor.engine.records import Lineage, ProcessId, exit_record, forget_record, fork_record
from monitor.errors import EngineRefused

if TYPE_CHECKING:
    from tests.engine.conftest import Tools, World

SLOTS = (0, 1, lib.KW_SLOTS - 1)


def _history(data: st.DataObject, world: World, steps: int) -> list[bytes]:
    """Any history of any world: the records of it, in order."""
    records = []
    for _ in range(steps):
        kin = [process for process in world.live if process.kin]
        deed = data.draw(st.sampled_from(("root", "fork", "fork", "fork", "exec", "match", "adopt", "end", "end")))
        if deed == "root" or not kin:
            slots = data.draw(st.lists(st.sampled_from(SLOTS), min_size=1, unique=True))
            records.append(world.start_root(*slots)[1])
            continue
        process = data.draw(st.sampled_from(kin))
        if deed == "fork":
            records.append(world.fork(process)[1])
        elif deed == "adopt":
            records.append(world.adopt(process)[1])
        elif deed == "exec":
            records.append(world.execute(process))
        elif deed == "match":
            free = [slot for slot in SLOTS if slot not in process.kin]
            records.append(world.become_root(process, *free[:1]))
        else:
            records.append(world.end(process))
    return records


def _with_watches(engine: Engine) -> Engine:
    for slot in SLOTS:
        engine.watch(slot, f"watch{slot}", None)
    return engine


@given(data=st.data(), steps=st.integers(1, 60))
@settings(deadline=None, max_examples=200)
def test_counters_lineage_and_tree_are_those_of_the_world(tools: type[Tools], data: st.DataObject, steps: int) -> None:
    world = tools.World()
    with _with_watches(Engine(256)) as engine:
        for record in _history(data, world, steps):
            assert engine.ingest(record) == 1
        for slot in SLOTS:
            world.check(engine, slot)
        names = {f"watch{slot}": slot for slot in SLOTS}
        forks = {}
        for line in tools.told(engine):
            if isinstance(line, lines.Fork):
                forks[line.process_id, names[line.watch]] = (line.root_process_id, line.depth)
        for process in world.live:
            for slot, (root, depth) in process.kin.items():
                if (key := (str(process.id), slot)) in forks and root != process.id:
                    assert forks[key] == (str(root), depth)


@given(data=st.data(), steps=st.integers(1, 40))
@settings(deadline=None)
def test_a_record_told_twice_counts_once(tools: type[Tools], data: st.DataObject, steps: int) -> None:
    world = tools.World()
    with _with_watches(Engine(256)) as once, _with_watches(Engine(256)) as twice:
        for record in _history(data, world, steps):
            once.ingest(record)
            twice.ingest(record + record)
        for slot in SLOTS:
            one, two = once.counters(slot), twice.counters(slot)
            assert (one.alive, one.roots, one.spawned, one.adopted, one.exits, one.peak) == (
                two.alive,
                two.roots,
                two.spawned,
                two.adopted,
                two.exits,
                two.peak,
            )
        lines_once = [line for line in tools.told(once) if not isinstance(line, lines.Exec | lines.Root)]
        lines_twice = [line for line in tools.told(twice) if not isinstance(line, lines.Exec | lines.Root)]
        assert lines_once == lines_twice


@given(data=st.data(), steps=st.integers(1, 60))
@settings(deadline=None, max_examples=200)
def test_whatever_is_lost_alive_is_right_again_after_a_sync(
    tools: type[Tools], data: st.DataObject, steps: int
) -> None:
    world = tools.World()
    with _with_watches(Engine(256)) as engine:
        for record in _history(data, world, steps):
            if data.draw(st.booleans()):
                engine.ingest(record)
            for slot in SLOTS:
                counters = engine.counters(slot)
                assert counters.alive == counters.spawned + counters.adopted - counters.exits
                assert counters.roots == counters.root_starts - counters.root_exits
                assert counters.alive <= counters.peak <= counters.spawned + counters.adopted
                assert counters.alive < 1 << 32
        engine.ingest(world.rows())
        for slot in SLOTS:
            counters = engine.counters(slot)
            assert (counters.alive, counters.roots) == (world.alive(slot), world.roots(slot))
            assert counters.exits <= world.truth[slot].exits
        tools.told(engine)


def test_a_child_whose_fork_was_lost_is_counted_by_its_exit(engine: Engine, world: World) -> None:
    root, record = world.start_root(0)
    engine.ingest(record)
    child, _lost = world.fork(root)
    engine.ingest(world.end(child))
    world.check(engine, 0)


def test_a_child_whose_fork_was_lost_is_counted_by_its_exec(engine: Engine, world: World) -> None:
    root, record = world.start_root(0)
    engine.ingest(record)
    child, _lost = world.fork(root)
    engine.ingest(world.execute(child))
    world.check(engine, 0)
    engine.ingest(world.end(child))
    world.check(engine, 0)


def test_an_exit_that_overtakes_its_fork_counts_one_child_and_makes_both_lines(
    engine: Engine, world: World, tools: type[Tools]
) -> None:
    root, record = world.start_root(0)
    engine.ingest(record)
    child, fork = world.fork(root)
    engine.ingest(world.end(child) + fork)
    world.check(engine, 0)
    assert [type(line) for line in tools.told(engine)] == [lines.Root, lines.Exit, lines.Fork]


def test_pid_reuse_is_two_processes(engine: Engine, world: World, tools: type[Tools]) -> None:
    root, record = world.start_root(0)
    first, fork_first = world.fork(root, pid=5000)
    end_first = world.end(first)
    second, fork_second = world.fork(root, pid=5000)
    engine.ingest(record + fork_first + end_first + fork_second)
    world.check(engine, 0)
    forks = [line for line in tools.told(engine) if isinstance(line, lines.Fork)]
    assert [line.process_id for line in forks] == [str(first.id), str(second.id)]
    assert first.id.pid == second.id.pid


def test_a_reused_pid_whose_first_exit_was_lost_leaves_one_alive(engine: Engine, world: World) -> None:
    root, record = world.start_root(0)
    first, fork_first = world.fork(root, pid=5000)
    world.end(first)
    _, fork_second = world.fork(root, pid=5000)
    engine.ingest(record + fork_first + fork_second)
    world.check(engine, 0)


def test_a_record_of_the_former_owner_of_a_pid_does_not_harm_the_present_one(
    engine: Engine, world: World, tools: type[Tools]
) -> None:
    root, record = world.start_root(0)
    former, fork_former = world.fork(root, pid=5000)
    end_former = world.end(former)
    present, fork_present = world.fork(root, pid=5000)
    engine.ingest(record + world.rows() + fork_former + end_former + fork_present)
    counters = engine.counters(0)
    assert (counters.alive, counters.spawned, counters.exits) == (1, 2, 1)
    told = [line for line in tools.told(engine) if isinstance(line, lines.Fork | lines.Exit)]
    assert [(type(line).__name__, line.process_id) for line in told] == [
        ("Fork", str(former.id)),
        ("Exit", str(former.id)),
        ("Fork", str(present.id)),
    ]


def test_more_processes_than_the_table_holds_are_counted_and_told(world: World, tools: type[Tools]) -> None:
    with Engine(8) as engine:
        engine.watch(0, "one", None)
        root, record = world.start_root(0)
        engine.ingest(record)
        children = []
        for _ in range(20):
            child, fork = world.fork(root)
            children.append(child)
            engine.ingest(fork)
        world.check(engine, 0)
        assert engine.losses()["table_full"] == 13
        for child in children:
            engine.ingest(world.end(child))
        world.check(engine, 0)
        told = tools.told(engine)
        assert sum(isinstance(line, lines.Fork) for line in told) == 20
        assert sum(isinstance(line, lines.Exit) for line in told) == 20
        assert [line.count for line in told if isinstance(line, lines.Lost) and line.stage == "table_full"]


@pytest.mark.parametrize("kept", [slice(0, 3), slice(-3, None), slice(5, 9)], ids=["tracked", "untracked", "both"])
def test_a_full_table_is_right_again_after_a_sync(world: World, kept: slice) -> None:
    with Engine(8) as engine:
        engine.watch(0, "one", None)
        root, record = world.start_root(0)
        engine.ingest(record)
        children = []
        for _ in range(20):
            child, fork = world.fork(root)
            children.append(child)
            engine.ingest(fork)
        for child in children:
            if child not in children[kept]:
                world.end(child)
        engine.ingest(world.rows())
        world.check(engine, 0)
        for child in children[kept]:
            engine.ingest(world.end(child))
        world.check(engine, 0)


def test_each_reader_has_a_window_peak_of_its_own(engine: Engine, world: World) -> None:
    root, record = world.start_root(0)
    engine.ingest(record)
    children = []
    for _ in range(3):
        child, fork = world.fork(root)
        children.append(child)
        engine.ingest(fork)
    assert engine.counters(0, 0).window_peak == 3
    for child in children:
        engine.ingest(world.end(child))
    assert engine.counters(0, 0).window_peak == 3  # three were alive when the window began
    assert engine.counters(0, 0).window_peak == 0
    engine.ingest(world.fork(root)[1])
    assert engine.counters(0, 0).window_peak == 1
    assert engine.counters(0, 1).window_peak == 3
    assert engine.counters(0).peak == 3


def test_a_slot_without_a_watch_has_no_lines_and_no_counters(engine: Engine, tools: type[Tools]) -> None:
    process, root = ProcessId(10, 10), ProcessId(1, 1)
    engine.ingest(fork_record(time_ns=20, process=process, parent=root, watches=1 << 5, comm=b"x"))
    engine.ingest(exit_record(time_ns=30, process=process, watches=1 << 5, comm=b"x"))
    assert tools.told(engine) == []
    with pytest.raises(EngineRefused):
        engine.counters(5)


def test_unwatch_forgets_kin_and_counters(engine: Engine, world: World, tools: type[Tools]) -> None:
    root, record = world.start_root(0, 1)
    child, fork = world.fork(root)
    engine.ingest(record + fork)
    engine.unwatch(0)
    with pytest.raises(EngineRefused):
        engine.counters(0)
    world.check(engine, 1)
    engine.watch(0, "again", None)
    assert engine.counters(0).alive == engine.counters(0).spawned == 0
    tools.told(engine)
    engine.ingest(world.end(child))
    world.check(engine, 1)
    assert engine.counters(0).alive == 0


def test_a_forgotten_process_is_no_longer_alive_and_did_not_end(
    engine: Engine, world: World, tools: type[Tools]
) -> None:
    root, record = world.start_root(0, 1)
    child, fork = world.fork(root)
    engine.ingest(record + fork)
    tools.told(engine)
    engine.ingest(forget_record(time_ns=world.tick(), process=child.id, gone=0b01, watches=0b10))
    counters = engine.counters(0)
    assert (counters.alive, counters.exits) == (0, 0)
    assert engine.counters(1).alive == 1
    assert tools.told(engine) == []
    engine.ingest(
        fork_record(
            time_ns=world.tick(),
            process=ProcessId(7777, world.now_ns),
            parent=child.id,
            watches=0b10,
            lineage=Lineage(root.id, 2),
            comm=b"x",
        )
    )
    (line,) = tools.told(engine)
    assert isinstance(line, lines.Fork)
    assert (line.watch, line.depth) == ("two", 2)

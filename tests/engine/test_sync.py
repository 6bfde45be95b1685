"""A sync brings the table to what the kernel knows, may run ahead of the records, and makes no line of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitor.engine import Engine, lines
from monitor.engine.records import sync_record

if TYPE_CHECKING:
    from tests.engine.conftest import Tools, World


def test_rows_of_running_kin_are_counted_without_a_line(engine: Engine, world: World, tools: type[Tools]) -> None:
    root, _ = world.start_root(0)
    for _ in range(3):
        world.fork(root)
    engine.ingest(world.rows())
    world.check(engine, 0)
    assert tools.told(engine) == []


def test_records_behind_a_sync_make_their_lines_and_count_once(
    engine: Engine, world: World, tools: type[Tools]
) -> None:
    root, first = world.start_root(0)
    stays, second = world.fork(root)
    goes, third = world.fork(root)
    fourth = world.end(goes)
    engine.ingest(world.rows())
    engine.ingest(first + second + third + fourth)
    world.check(engine, 0)
    assert [type(line) for line in tools.told(engine)] == [lines.Root, lines.Fork, lines.Fork, lines.Exit]
    engine.ingest(world.end(stays))
    world.check(engine, 0)


def test_what_is_in_no_row_has_ended(engine: Engine, world: World, tools: type[Tools]) -> None:
    root, record = world.start_root(0)
    child, fork = world.fork(root)
    engine.ingest(record + fork)
    tools.told(engine)
    end = world.end(child)
    engine.ingest(world.rows())
    world.check(engine, 0)
    assert tools.told(engine) == []
    engine.ingest(end)  # late: told, not counted again
    world.check(engine, 0)
    assert [type(line) for line in tools.told(engine)] == [lines.Exit]


def test_a_row_of_a_process_whose_exit_came_already_does_not_revive_it(engine: Engine, world: World) -> None:
    root, record = world.start_root(0)
    child, fork = world.fork(root)
    engine.ingest(record + fork)
    rows = world.rows()
    engine.ingest(world.end(child))
    engine.ingest(rows)
    world.check(engine, 0)


def test_a_row_takes_nothing_from_a_process_that_has_ended(engine: Engine, world: World) -> None:
    root, record = world.start_root(0, 1)
    child, fork = world.fork(root)
    engine.ingest(record + fork + world.end(child))
    less = sync_record(phase=1, time_ns=world.now_ns, process=child.id, watches=0b10)
    rows = world.rows()
    end = len(rows) // 3  # begin, the root's row, end
    engine.ingest(rows[: 2 * end] + less + rows[2 * end :])
    world.check(engine, 0)
    world.check(engine, 1)


def test_a_process_that_left_a_watch_unseen_is_forgotten_there(engine: Engine, world: World) -> None:
    root, record = world.start_root(0, 1)
    child, fork = world.fork(root)
    engine.ingest(record + fork)
    del child.kin[0]
    engine.ingest(world.rows())
    assert (engine.counters(0).alive, engine.counters(0).exits) == (0, 0)
    world.check(engine, 1)


def test_a_child_forked_while_the_rows_were_read_stays(engine: Engine, world: World) -> None:
    root, record = world.start_root(0)
    engine.ingest(record)
    rows = world.rows()
    _, fork = world.fork(root)
    engine.ingest(fork)
    engine.ingest(rows)  # made before the fork, arrives after it
    world.check(engine, 0)


def test_a_sync_clears_an_alarm_whose_exits_were_lost(engine: Engine, world: World, tools: type[Tools]) -> None:
    engine.watch(0, "one", 0)
    root, record = world.start_root(0)
    child, fork = world.fork(root)
    engine.ingest(record + fork)
    tools.told(engine)
    world.end(child)
    engine.ingest(world.rows())
    (clear,) = tools.told(engine)
    assert isinstance(clear, lines.Clear)


def test_a_sync_raises_an_alarm_whose_forks_were_lost(engine: Engine, world: World, tools: type[Tools]) -> None:
    engine.watch(0, "one", 1)
    root, record = world.start_root(0)
    engine.ingest(record)
    tools.told(engine)
    world.fork(root)
    young, _ = world.fork(root)
    engine.ingest(world.rows())
    (alarm,) = tools.told(engine)
    assert isinstance(alarm, lines.Alarm)
    assert alarm.process_ids == (str(young.id),)
    assert [one.process_id for one in alarm.lineage or ()] == [str(root.id), str(young.id)]


def test_replaced_children_are_no_peak(engine: Engine, world: World) -> None:
    root, record = world.start_root(0)
    children = [world.fork(root) for _ in range(3)]
    engine.ingest(record + b"".join(fork for _, fork in children))
    for child, _ in children:
        world.end(child)
    for _ in range(3):
        world.fork(root)
    engine.ingest(world.rows())
    assert engine.counters(0).peak == 3


def test_a_sync_knows_root_and_depth_in_every_watch(engine: Engine, world: World, tools: type[Tools]) -> None:
    top, _ = world.start_root(0)
    middle, _ = world.fork(top)
    world.become_root(middle, 1)
    low, _ = world.fork(middle)
    engine.ingest(world.rows())
    _, fork = world.fork(low)
    engine.ingest(fork)
    assert [
        (line.watch, line.root_process_id, line.depth) for line in tools.told(engine) if isinstance(line, lines.Fork)
    ] == [
        ("one", str(top.id), 3),
        ("two", str(middle.id), 2),
    ]


def test_rows_outside_a_sync_are_refused(engine: Engine, world: World) -> None:
    root, _ = world.start_root(0)
    row = sync_record(phase=1, time_ns=1, process=root.id, watches=1, roots=1)
    assert engine.ingest(row + sync_record(phase=2, time_ns=2)) == 0
    assert engine.losses()["bad_record"] == 2
    assert engine.counters(0).roots == 0

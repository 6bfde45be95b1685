"""Alarms about numbers of processes name live descendants: from the engine's own tree to the line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from monitor.engine import Engine
from monitor.engine.records import Lineage, ProcessId, exit_record, fork_record
from monitor.judging.culprits import SHOWN, counted_watch, culprits

if TYPE_CHECKING:
    from collections.abc import Iterator

TICK_NS = 10_000_000
ROOT = ProcessId(100, 100 * TICK_NS)


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as made:
        made.watch(0, "myapp", None)
        made.watch(1, "other", None)
        yield made


def born(engine: Engine, number: int, parent: ProcessId, depth: int, *, slot: int = 0) -> ProcessId:
    """A child, that starts with the tick of its number."""
    process = ProcessId(number, number * TICK_NS)
    record = fork_record(
        time_ns=process.start_ns,
        process=process,
        parent=parent,
        watches=1 << slot,
        comm=b"child",
        lineage=Lineage(ROOT, depth),
    )
    assert engine.ingest(record) == 1
    return process


def test_the_youngest_come_first_with_the_way_down_to_the_first_of_them(engine: Engine) -> None:
    first = born(engine, 300, ROOT, 1)
    second = born(engine, 201, first, 2)
    third = born(engine, 400, second, 3)
    born(engine, 500, ROOT, 1, slot=1)
    found = culprits(engine.tree(), "myapp")
    assert found.process_ids == tuple(map(str, (third, first, second)))
    assert [one.process_id for one in found.lineage] == [*map(str, (ROOT, first, second, third))]
    assert [one.pid for one in found.lineage] == [100, 300, 201, 400]


def test_who_ended_is_not_named_and_breaks_the_way(engine: Engine) -> None:
    first = born(engine, 300, ROOT, 1)
    second = born(engine, 400, first, 2)
    engine.ingest(
        exit_record(time_ns=450 * TICK_NS, process=first, watches=1, comm=b"child", status=0, lineage=Lineage(ROOT, 1))
    )
    found = culprits(engine.tree(), "myapp")
    assert found.process_ids == (str(second),)
    assert [one.process_id for one in found.lineage] == [str(ROOT), str(second)]


def test_of_many_only_the_youngest_are_named(engine: Engine) -> None:
    children = [born(engine, 300 + number, ROOT, 1) for number in range(3 * SHOWN)]
    assert culprits(engine.tree(), "myapp").process_ids == tuple(map(str, children[: -SHOWN - 1 : -1]))


def test_nobody_lives(engine: Engine) -> None:
    assert culprits(engine.tree(), "myapp") == ((), ())


@pytest.mark.parametrize(
    ("metric", "watch"),
    [
        ("num_child_procs_myapp", "myapp"),
        ("child_procs_alive_myapp", "myapp"),
        ("child_procs_peak_myapp", "myapp"),
        ("child_procs_spawned_myapp", "myapp"),
        ("child_execs_myapp", ""),
        ("bytes_out_myapp", ""),
        ("child_procs_alive_unknown", ""),
        ("aws:num-listening-tcp-ports", ""),
    ],
)
def test_metrics_that_count_descendants(metric: str, watch: str) -> None:
    assert counted_watch(metric, ("myapp", "other")) == watch

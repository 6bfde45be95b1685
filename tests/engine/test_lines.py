"""Each line has the keys of the event table, in its order, and leaves out what its record did not know."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import pytest

from monitor.engine import STAGES, Engine, lines
from monitor.engine._native import ffi, lib
from monitor.engine.records import (
    Credentials,
    Lineage,
    ProcessId,
    exit_record,
    fork_record,
    image_record,
    lost_record,
)

if TYPE_CHECKING:
    from tests.engine.conftest import World

ROOT, CHILD = ProcessId(100, 1_000_000_000), ProcessId(101, 2_000_000_000)
NOW_NS = 3_000_000_000
FACTS = lib.KW_TRUNCATED | lib.KW_MEMFD | lib.KW_DELETED


def _image(kind: int, **fields: object) -> bytes:
    full = {
        "time_ns": NOW_NS,
        "process": CHILD,
        "watches": 1,
        "comm": b"cat",
        "lineage": Lineage(ROOT, 1),
        "parent": ROOT,
        "ppid": 1,
        "credentials": Credentials(1, 2),
        "exe": b"/bin/cat",
        "script": b"/bin/s",
        "argv": [b"cat"],
        "cwd": b"/",
        "flags": FACTS,
    }
    return image_record(kind=kind, **{**full, **fields})  # type: ignore[arg-type]


def _bare(kind: int, **fields: object) -> bytes:
    return image_record(kind=kind, time_ns=NOW_NS, process=CHILD, watches=1, comm=b"cat", **fields)  # type: ignore[arg-type]


FULL = ["comm", "exe", "script", "argv", "cwd", "uid", "gid", "truncated", "memfd", "deleted"]
TOLD = {
    "fork": (
        fork_record(time_ns=NOW_NS, process=CHILD, parent=ROOT, watches=1, lineage=Lineage(ROOT, 1), comm=b"c", uid=0),
        ["parent_pid", "parent_process_id", "root_process_id", "depth", "comm", "uid"],
    ),
    "fork, bare": (fork_record(time_ns=NOW_NS, process=CHILD, parent=None, watches=1, comm=b"c"), ["comm"]),
    "exec": (_image(lib.KW_EXEC), ["ppid", "depth", *FULL]),
    "exec, bare": (_bare(lib.KW_EXEC), ["comm"]),
    "root": (_image(lib.KW_EXEC, roots=1, fresh=1, cause=lib.KW_CAUSE_EXEC), ["ppid", *FULL, "cause"]),
    "root, bare": (_bare(lib.KW_ADOPT, roots=1, fresh=1, cause=lib.KW_CAUSE_MOVED), ["comm", "cause"]),
    "adopt": (_image(lib.KW_ADOPT, fresh=1, flags=FACTS | lib.KW_INFERRED), ["ppid", "depth", *FULL, "inferred"]),
    "adopt, bare": (_bare(lib.KW_ADOPT, fresh=1), ["comm"]),
    "exit": (
        exit_record(time_ns=NOW_NS, process=CHILD, watches=1, comm=b"c", lineage=Lineage(ROOT, 1), status=0x8B),
        ["depth", "comm", "signal", "core", "duration_ms"],
    ),
    "exit, bare": (exit_record(time_ns=NOW_NS, process=CHILD, watches=1, comm=b"c"), ["comm", "duration_ms"]),
}


@pytest.mark.parametrize("case", TOLD)
def test_a_line_has_its_keys_in_order_and_no_other(engine: Engine, case: str) -> None:
    record, keys = TOLD[case]
    assert engine.ingest(record) == 1
    line = engine.take().lines
    assert list(json.loads(line)) == ["time", "event", "watch", "pid", "process_id", *keys]
    assert json.loads(line)["event"] == case.removesuffix(", bare")
    assert None not in json.loads(line).values()
    lines.decode(line)


def test_the_values_of_a_line_are_the_record_s(engine: Engine) -> None:
    engine.ingest(_image(lib.KW_EXEC))
    assert lines.decode(engine.take().lines) == lines.Exec(
        time="1970-01-01T00:00:03.000000000Z",
        watch="one",
        pid=101,
        process_id="101-200",
        ppid=1,
        depth=1,
        comm="cat",
        exe="/bin/cat",
        script="/bin/s",
        argv=("cat",),
        cwd="/",
        uid=1,
        gid=2,
        truncated=True,
        memfd=True,
        deleted=True,
    )


@pytest.mark.parametrize(
    ("status", "exit_code", "signal", "core"),
    [
        (0, 0, None, None),
        (1 << 8, 1, None, None),
        (255 << 8, 255, None, None),
        (9, None, 9, None),
        (0x80 | 11, None, 11, True),
        (64, None, 64, None),
    ],
)
def test_an_exit_by_signal_is_not_status_zero(
    engine: Engine, status: int, exit_code: int | None, signal: int | None, *, core: bool | None
) -> None:
    engine.ingest(exit_record(time_ns=NOW_NS, process=CHILD, watches=1, comm=b"x", status=status))
    told = json.loads(engine.take().lines)
    assert (told.get("exit_code"), told.get("signal"), told.get("core")) == (exit_code, signal, core)


def test_duration_is_in_whole_milliseconds(engine: Engine) -> None:
    for pid, lived_ns, duration_ms in ((1, 0, 0), (2, 999_999, 0), (3, 1_000_000, 1), (4, 5_000_999_999, 5000)):
        process = ProcessId(pid, 10**9)
        engine.ingest(exit_record(time_ns=10**9 + lived_ns, process=process, watches=1, comm=b"x"))
        told = lines.decode(engine.take().lines)
        assert isinstance(told, lines.Exit)
        assert told.duration_ms == duration_ms


def test_a_process_has_one_line_per_watch_with_the_root_it_has_there(engine: Engine, world: World) -> None:
    top, first = world.start_root(0)
    middle, second = world.fork(top)
    third = world.become_root(middle, 1)
    low, fourth = world.fork(middle)
    engine.ingest(first + second + third)
    engine.take()
    engine.ingest(fourth)
    told = [lines.decode(line) for line in engine.take().lines.splitlines()]
    assert [(line.watch, line.root_process_id, line.depth) for line in told if isinstance(line, lines.Fork)] == [
        ("one", str(top.id), 2),
        ("two", str(middle.id), 1),
    ]
    engine.ingest(world.execute(low) + world.execute(middle) + world.end(low))
    told = [lines.decode(line) for line in engine.take().lines.splitlines()]
    assert [
        (type(line).__name__, line.watch, line.depth) for line in told if isinstance(line, lines.Exec | lines.Exit)
    ] == [
        ("Exec", "one", 2),
        ("Exec", "two", 1),
        ("Exec", "one", 1),
        ("Exec", "two", 0),
        ("Exit", "one", 2),
        ("Exit", "two", 1),
    ]


def test_root_and_depth_are_left_out_where_they_cannot_be_known(engine: Engine) -> None:
    stranger = ProcessId(9, 9)
    engine.ingest(
        fork_record(time_ns=NOW_NS, process=CHILD, parent=stranger, watches=0b11, lineage=Lineage(ROOT, 3), comm=b"c")
    )
    for line in engine.take().lines.splitlines():
        assert not {"root_process_id", "depth"} & set(json.loads(line))


def test_the_outermost_root_stands_only_where_it_is_a_root(engine: Engine, world: World) -> None:
    root, record = world.start_root(0)
    engine.ingest(record)
    engine.take()
    unheard_of = ProcessId(9, 9)
    engine.ingest(
        fork_record(
            time_ns=world.tick(),
            process=ProcessId(5000, world.now_ns),
            parent=unheard_of,
            watches=0b11,
            lineage=Lineage(root.id, 3),
            comm=b"c",
        )
    )
    told = [json.loads(line) for line in engine.take().lines.splitlines()]
    assert [(line["watch"], line.get("root_process_id"), line.get("depth")) for line in told] == [
        ("one", str(root.id), 3),
        ("two", None, None),
    ]


def test_a_late_child_names_the_root_of_its_dead_parent(engine: Engine, world: World) -> None:
    top, record = world.start_root(0)
    engine.ingest(record + world.become_root(top, 1))
    middle, fork = world.fork(top)
    _, late = world.fork(middle)
    engine.ingest(fork + world.end(middle) + world.end(top))
    engine.take()
    engine.ingest(late)
    told = [lines.decode(line) for line in engine.take().lines.splitlines()]
    assert [(line.root_process_id, line.depth) for line in told if isinstance(line, lines.Fork)] == [
        (str(top.id), 2)
    ] * 2


def test_a_process_kin_of_every_watch_keeps_a_root_and_a_depth_for_each(world: World) -> None:
    with Engine(256) as engine:
        for slot in range(lib.KW_WATCHES):
            engine.watch(slot, f"w{slot}", None)
        process, record = world.start_root(0)
        engine.ingest(record)
        roots = [process]
        for slot in range(1, lib.KW_WATCHES):
            process, record = world.fork(process)
            engine.ingest(record + world.become_root(process, slot))
            roots.append(process)
        engine.take()
        engine.ingest(world.fork(process)[1])
        told = [lines.decode(line) for line in engine.take().lines.splitlines()]
        assert [(line.watch, line.root_process_id, line.depth) for line in told if isinstance(line, lines.Fork)] == [
            (f"w{slot}", str(root.id), lib.KW_WATCHES - slot) for slot, root in enumerate(roots)
        ]


@pytest.mark.parametrize("stage", range(lib.KW_STAGES))
def test_a_loss_is_one_line_and_counted(engine: Engine, stage: int) -> None:
    assert lost_record(time_ns=NOW_NS, stage=STAGES[stage], count=7) == lost_record(
        time_ns=NOW_NS, stage=stage, count=7
    )
    engine.ingest(lost_record(time_ns=NOW_NS, stage=stage, count=7))
    assert engine.take().lines == (
        b'{"time":"1970-01-01T00:00:03.000000000Z","event":"lost","stage":"%s","count":7}\n' % STAGES[stage].encode()
    )
    assert engine.losses() == {name: 7 * (number == stage) for number, name in enumerate(STAGES)}


def test_stage_names_follow_the_header() -> None:
    assert [f"KW_{name.upper()}" for name in STAGES] == [
        name
        for name, _ in sorted(
            ((name, number) for number, name in ffi.typeof("enum kw_stage").elements.items() if name != "KW_STAGES"),
            key=lambda pair: pair[1],
        )
    ]


@pytest.mark.parametrize(
    "line",
    [
        b'{"time":"t","event":"lost","stage":"ring_full","count":1,"more":1}',
        b'{"time":"t","event":"lost","stage":"elsewhere","count":1}',
        b'{"time":"t","event":"lost","stage":"ring_full","count":null}',
        b'{"time":"t","event":"party"}',
        b'{"time":"t","event":"exit","watch":"w","pid":1,"process_id":"1-1","comm":"c"}',
    ],
)
def test_the_schema_refuses_what_no_line_says(line: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        lines.decode(line)

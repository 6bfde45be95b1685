"""An instant expectation breaks at the very fork that breaks it, and holds again at the exit that mends it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.engine import Engine, lines
from monitor.engine._native import lib
from monitor.errors import EngineRefused

if TYPE_CHECKING:
    from tests.engine.conftest import Tools, World


def _kinds(engine: Engine) -> list[str]:
    return [json.loads(line)["event"] for line in engine.take().lines.splitlines()]


def test_a_child_of_a_moment_raises_and_clears(engine: Engine, world: World, tools: type[Tools]) -> None:
    engine.watch(0, "one", 0)
    root, record = world.start_root(0)
    child, fork = world.fork(root)
    engine.ingest(record + fork)
    forked_ns = world.now_ns
    engine.ingest(world.end(child))
    told = tools.told(engine)
    assert [type(line) for line in told] == [lines.Root, lines.Fork, lines.Alarm, lines.Exit, lines.Clear]
    _, fork_line, alarm, exit_line, clear = told
    assert isinstance(alarm, lines.Alarm)
    assert isinstance(clear, lines.Clear)
    assert (alarm.time, alarm.since) == (fork_line.time, fork_line.time)
    assert (clear.time, clear.since) == (exit_line.time, fork_line.time)
    assert forked_ns < world.now_ns
    for line, value in ((alarm, 1), (clear, 0)):
        assert (line.watch, line.behavior, line.metric) == ("one", "child_processes", "num_child_procs_one")
        assert (line.value, line.process_ids) == (value, (str(child.id),))
        assert line.criteria == lines.Criteria(
            comparison_operator="less-than-equals", value=lines.CriteriaValue(number=0)
        )
    assert alarm.lineage == (
        lines.Ancestor(process_id=str(root.id), pid=root.id.pid, comm="myapp", exe="/opt/myapp"),
        lines.Ancestor(process_id=str(child.id), pid=child.id.pid, comm="myapp", exe="/opt/myapp"),
    )


@given(deeds=st.lists(st.booleans(), max_size=60), limit=st.integers(0, 4))
@settings(deadline=None)
def test_alarm_and_clear_take_turns_and_follow_the_limit(tools: type[Tools], deeds: list[bool], limit: int) -> None:
    world = tools.World()
    with Engine(256) as engine:
        engine.watch(0, "one", limit)
        root, record = world.start_root(0)
        engine.ingest(record)
        alarmed = False
        for starts in deeds:
            children = world.live[1:]
            if not starts and not children:
                continue
            engine.ingest(world.fork(root)[1] if starts else world.end(children[0]))
            told = _kinds(engine)
            now = world.alive(0) > limit
            assert told[-1:] == (["alarm" if now else "clear"] if now != alarmed else ["fork" if starts else "exit"])
            alarmed = now


def test_an_adopted_child_breaks_an_expectation_too(engine: Engine, world: World) -> None:
    engine.watch(0, "one", 0)
    root, record = world.start_root(0)
    engine.ingest(record + world.adopt(root)[1])
    assert _kinds(engine) == ["root", "adopt", "alarm"]


def test_a_child_known_only_by_its_exit_raises_and_clears(engine: Engine, world: World) -> None:
    engine.watch(0, "one", 0)
    root, record = world.start_root(0)
    child, _lost = world.fork(root)
    engine.ingest(record + world.end(child))
    assert _kinds(engine) == ["root", "alarm", "exit", "clear"]


def test_each_watch_is_judged_by_itself(engine: Engine, world: World) -> None:
    engine.watch(0, "one", 0)
    engine.watch(1, "two", 1)
    root, record = world.start_root(0, 1)
    first, second = world.fork(root)[1], world.fork(root)[1]
    engine.ingest(record)
    engine.take()
    engine.ingest(first)
    assert _kinds(engine) == ["fork", "alarm", "fork"]
    engine.ingest(second)
    assert _kinds(engine) == ["fork", "fork", "alarm"]


def test_a_new_limit_is_judged_at_once(engine: Engine, world: World, tools: type[Tools]) -> None:
    root, record = world.start_root(0)
    elder, fork_elder = world.fork(root)
    younger, fork_younger = world.fork(root)
    engine.ingest(record + fork_elder + fork_younger)
    told = tools.told(engine)
    engine.watch(0, "one", 1)
    (alarm,) = tools.told(engine)
    assert isinstance(alarm, lines.Alarm)
    assert (alarm.time, alarm.value) == (told[-1].time, 2)
    assert alarm.process_ids == (str(younger.id),)
    engine.watch(0, "one", 1)
    assert tools.told(engine) == []
    engine.watch(0, "one", 2)
    (clear,) = tools.told(engine)
    assert isinstance(clear, lines.Clear)
    assert clear.since == alarm.since
    assert elder.id != younger.id


def test_a_withdrawn_limit_and_a_withdrawn_watch_clear_their_alarm(engine: Engine, world: World) -> None:
    engine.watch(0, "one", 0)
    engine.watch(1, "two", 0)
    root, record = world.start_root(0, 1)
    engine.ingest(record + world.fork(root)[1])
    engine.take()
    engine.watch(0, "one", None)
    assert _kinds(engine) == ["clear"]
    engine.unwatch(1)
    assert _kinds(engine) == ["clear"]


def test_the_lineage_goes_through_the_dead(engine: Engine, world: World, tools: type[Tools]) -> None:
    root, record = world.start_root(0)
    engine.ingest(record)
    chain = [root]
    for depth in range(4):
        child, fork = world.fork(chain[-1])
        engine.ingest(fork + world.execute(child, b"sh%d" % depth))
        chain.append(child)
    for process in chain[:-1]:
        engine.ingest(world.end(process))
    engine.watch(0, "one", 1)
    tools.told(engine)
    child, fork = world.fork(chain[-1])
    engine.ingest(fork)
    alarm = tools.told(engine)[-1]
    assert isinstance(alarm, lines.Alarm)
    assert [(one.process_id, one.comm, one.exe) for one in alarm.lineage or ()] == [
        (str(process.id), process.comm.decode(), process.exe.decode()) for process in [*chain, child]
    ]


def test_a_root_that_ended_long_ago_is_named_by_its_id(engine: Engine, world: World, tools: type[Tools]) -> None:
    root, record = world.start_root(0)
    middle, fork = world.fork(root)
    engine.ingest(record + fork + world.end(root))
    for _ in range(5000):  # more than the dead that are kept
        child, fork = world.fork(middle)
        engine.ingest(fork + world.end(child))
    engine.watch(0, "one", 1)
    engine.take()
    child, fork = world.fork(middle)
    engine.ingest(fork)
    alarm = tools.told(engine)[-1]
    assert isinstance(alarm, lines.Alarm)
    assert [one.process_id for one in alarm.lineage or ()] == [str(one.id) for one in (root, middle, child)]
    assert (alarm.lineage or ())[0] == lines.Ancestor(process_id=str(root.id), pid=root.id.pid)


def test_a_very_deep_lineage_shows_the_root_and_the_nearest(engine: Engine, world: World, tools: type[Tools]) -> None:
    root, record = world.start_root(0)
    engine.ingest(record)
    process = root
    for _ in range(300):
        process, fork = world.fork(process)
        engine.ingest(fork)
    engine.take()
    engine.watch(0, "one", 300)
    process, fork = world.fork(process)
    engine.ingest(fork)
    alarm = tools.told(engine)[-1]
    assert isinstance(alarm, lines.Alarm)
    shown = [one.process_id for one in alarm.lineage or ()]
    assert shown == [str(root.id), *(str(one.id) for one in world.live[-63:])]


@pytest.mark.parametrize("name", ["", "a" * 65, 'a"b', "a b", "ä", "a/b"])
def test_an_impossible_name_is_refused(engine: Engine, name: str) -> None:
    with pytest.raises(EngineRefused, match="EINVAL"):
        engine.watch(2, name, None)


def test_impossible_slots_and_limits_are_refused(engine: Engine) -> None:
    for slot in (lib.KW_SLOTS, 2**32 - 1):
        with pytest.raises(EngineRefused):
            engine.watch(slot, "one", None)
        with pytest.raises(EngineRefused):
            engine.unwatch(slot)
    with pytest.raises(EngineRefused):
        engine.watch(0, "one", -2)
    with pytest.raises(EngineRefused):
        engine.unwatch(5)

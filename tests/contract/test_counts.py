"""Numbers: exact where the capture sees everything, marked where it cannot. KINWATCH_LONG=1 makes them large."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from monitor.engine.lines import Alarm, Clear, Exec, Exit, Fork, Lost, Root

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Programs, Watcher

LONG = os.environ.get("KINWATCH_LONG") == "1"
SHORT_LIVED = 100_000 if LONG else 2_000
EXECUTING = 5_000 if LONG else 200


def test_every_short_lived_child_is_counted(watch: Callable[..., Watcher], programs: Programs, name: str) -> None:
    watcher = watch("--watch", name)
    app = programs.start("short_lived", name, str(SHORT_LIVED))
    assert app.fact("children")["count"] == SHORT_LIVED
    watcher.wait_for(Root, pid=app.pid)
    app.release()
    watcher.wait_for(Exit, pid=app.pid)
    status = watcher.ask("status")
    watcher.stop()
    (counted,) = status["watches"]
    metrics = watcher.metrics()
    if watcher.unknown("short-lived process"):
        assert {"spawned", "exits", "peak"} <= set(status["lower_bounds"])
        assert counted["spawned"] <= SHORT_LIVED
        return
    if watcher.unknown("child given to the root's parent"):
        assert {"spawned", "exits", "peak"} <= set(status["lower_bounds"]), "exact here, but not for certain"
    else:
        assert status["lower_bounds"] == []
    assert (counted["spawned"], counted["exits"], counted["alive"]) == (SHORT_LIVED, SHORT_LIVED, 0)
    if watcher.unknown("child given to the root's parent"):
        # A socket tells two processors' events in its own order: the next child's fork before the last one's exit.
        assert 1 <= counted["peak"] <= 1 + (os.cpu_count() or 1)
        return
    assert counted["peak"] == 1
    assert metrics[f"num_child_procs_{name}"] == SHORT_LIVED
    assert metrics[f"child_procs_spawned_{name}"] == SHORT_LIVED
    assert metrics[f"child_procs_alive_{name}"] == 0
    assert metrics[f"child_procs_peak_{name}"] == 1
    assert metrics[f"child_execs_{name}"] == 0
    assert metrics[f"roots_{name}"] == 0
    lost = sum(line.count for line in watcher.of(Lost))
    assert lost == metrics["events_lost"]
    assert len(watcher.of(Fork)) + len(watcher.of(Exit)) - 1 + lost == 2 * SHORT_LIVED, "told, or told to be lost"


def test_every_executing_child_is_counted(watch: Callable[..., Watcher], programs: Programs, name: str) -> None:
    watcher = watch("--watch", name)
    app = programs.start("fork_exec", name, str(EXECUTING), "/bin/true")
    app.fact("children")
    app.release()
    watcher.wait_for(Exit, pid=app.pid)
    status = watcher.ask("status")
    watcher.stop()
    if watcher.unknown("short-lived process"):
        assert "execs" in status["lower_bounds"]
        return
    metrics = watcher.metrics()
    assert metrics[f"child_execs_{name}"] == EXECUTING
    assert metrics[f"num_child_procs_{name}"] == EXECUTING
    assert metrics[f"child_exes_{name}"] == [os.path.realpath("/bin/true")]
    told = {fact["pid"] for fact in app.facts("child")}
    assert {image.pid for image in watcher.of(Exec)} == told
    for pid in told:
        assert watcher.told(pid) == ["fork", "exec", "exit"]


def test_app_without_children_is_not_an_app_that_does_not_run(
    watch: Callable[..., Watcher], programs: Programs, name: str
) -> None:
    absent = f"{name}z"
    watcher = watch("--watch", name, "--watch", absent)
    app = programs.start("family", name)
    watcher.wait_for(Root, pid=app.pid)
    watcher.stop()
    metrics = watcher.metrics()
    assert (metrics[f"roots_{name}"], metrics[f"num_child_procs_{name}"]) == (1, 0)
    assert (metrics[f"roots_{absent}"], metrics[f"num_child_procs_{absent}"]) == (0, 0)


def test_child_beyond_the_expectation_raises_the_alarm_and_its_end_clears_it(
    watch: Callable[..., Watcher], programs: Programs, name: str
) -> None:
    watcher = watch("--watch", name, "--expect", "child_processes=1")
    app = programs.start("orphan", name)
    first = app.fact("root")["child"]
    watcher.wait_for(Fork, pid=first)
    assert watcher.of(Alarm) == []
    app.go()
    second = app.fact("child")["pid"]
    watcher.wait_for(Alarm)
    app.release()
    watcher.wait_for(Clear)
    watcher.wait_for(Exit, pid=first)
    watcher.stop()
    alarm, clear = watcher.one(Alarm), watcher.one(Clear)
    metric = f"num_child_procs_{name}"
    assert (alarm.watch, alarm.behavior, alarm.metric, alarm.value) == (name, "child_processes", metric, 2)
    assert alarm.process_ids == (watcher.one(Fork, pid=second).process_id,)
    assert isinstance(alarm.lineage, tuple)
    assert [ancestor.pid for ancestor in alarm.lineage] == [app.pid, first, second], "from the root to who broke it"
    assert (clear.value, clear.since) == (1, alarm.time)
    order = [line for line in watcher.lines() if isinstance(line, Fork | Alarm | Clear | Exit)]
    assert order[order.index(alarm) - 1] == watcher.one(Fork, pid=second), "right after the fork that broke it"
    assert isinstance(order[order.index(clear) - 1], Exit), "right after the exit that ended it"
    assert watcher.reports()[0]["custom_metrics"][metric] == [{"number": 2}], "one report at once"


def test_child_of_no_time_raises_and_clears(watch: Callable[..., Watcher], programs: Programs, name: str) -> None:
    watcher = watch("--watch", name, "--expect", "child_processes=0")
    app = programs.start("short_lived", name, "1")
    app.fact("children")
    watcher.wait_for(Root, pid=app.pid)
    app.release()
    watcher.wait_for(Exit, pid=app.pid)
    watcher.stop()
    if watcher.unknown("short-lived process"):
        assert len(watcher.of(Alarm)) == len(watcher.of(Clear)) <= 1
        return
    assert [type(line) for line in watcher.lines()] == [Root, Fork, Alarm, Exit, Clear, Exit]
    assert watcher.reports()[0]["custom_metrics"][f"num_child_procs_{name}"] == [{"number": 1}]

"""A start while the application is at work: no hole, and no ghost."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from monitor.engine.lines import Exit, Fork
from tests.contract.conftest import eventually

if TYPE_CHECKING:
    from tests.contract.conftest import Program, Programs
    from tests.kernel.conftest import Daemon, Daemons

STARTS = 50 if os.environ.get("KINWATCH_LONG") == "1" else 5
TURNS = 100


def _pause(app: Program, number: int) -> int:
    """Pause a storm for the `number`th time; the turns it has taken. No descendant is alive now."""
    app.go()
    turns: int = app.fact("paused", number)["turns"]
    return turns


def _told(daemon: Daemon, kind: type[Fork | Exit], app: Program, after_wall_ns: int) -> set[int]:
    """Pids that the storm made after a moment and that have no line of that kind."""
    seen = {line.pid for line in daemon.of(kind)}
    made = {pid for turn in app.facts("turn") if turn["wall_ns"] > after_wall_ns for pid in turn["pids"]}
    assert len(made) >= 2 * TURNS, "the storm went on"
    return made - seen


@pytest.mark.parametrize("start", range(STARTS))
def test_no_fork_is_missed_by_a_daemon_that_starts_in_a_storm(
    daemons: Daemons, built: Programs, name: str, start: int
) -> None:
    assert start < STARTS
    daemons.configure("[capture]\nring_bytes = 67108864\n")
    app = built.start("storm", name)
    app.fact("begun")
    daemon = daemons.start("--watch", name)
    ready_turns = _pause(app, 1)
    ready = daemon.counters(name)
    assert (ready["roots"], ready["alive"]) == (1, 0), "no ghost: nothing is alive while the storm pauses"
    assert ready["spawned"] + ready["adopted"] == ready["exits"]
    app.go()
    began = len(app.facts("turn"))
    eventually(lambda: daemon.counters(name)["spawned"] >= ready["spawned"] + 2 * TURNS, f"{TURNS} more turns")
    turns = _pause(app, 2) - ready_turns
    after = daemon.counters(name)
    assert turns >= TURNS
    assert len(app.facts("turn")) == began + turns
    assert after["spawned"] - ready["spawned"] == 2 * turns
    assert after["exits"] - ready["exits"] == 2 * turns
    assert (after["roots"], after["alive"], after["adopted"]) == (1, 0, ready["adopted"])
    app.release()
    daemon.wait_for(Exit, pid=app.pid)
    daemon.stop()
    assert _told(daemon, Fork, app, daemon.ready_wall_ns) == set()
    assert _told(daemon, Exit, app, daemon.ready_wall_ns) == set()
    forked = {line.process_id for line in daemon.of(Fork)}
    assert {line.process_id for line in daemon.of(Exit) if line.pid != app.pid} >= forked, "whoever came has gone"
